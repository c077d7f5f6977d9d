"""The shared window: messages arrive whole, in order and once, and no corruption ever becomes a message."""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kupgrade.errors import BadInputError
from kupgrade.kernel import window, window_format
from kupgrade.kernel.window import MAX_PAYLOAD, Channel, Hello, Received, Side, Verdict
from kupgrade.kernel.window_format import SLOT_SIZE
from kupgrade.model.ids import UpgradeId

UPGRADE = UpgradeId("20261121-041503-9f2c1a")
OTHER = UpgradeId("20261121-041503-000000")
FRAME = 48


def fresh(slots: int = 2) -> memoryview:
    buffer = memoryview(bytearray(window_format.channel_size(slots) + 100))
    window_format.format_window(buffer, UPGRADE, slots)
    return buffer


def pair(buffer: memoryview, epoch: int = 1) -> tuple[Channel, Channel]:
    return Channel(buffer, Side.OLD, UPGRADE, epoch), Channel(buffer, Side.NEW, UPGRADE, epoch)


def slot_of(side: Side, sequence: int, slots: int = 2) -> int:
    return 3 * 4096 + (side * slots + sequence % slots) * SLOT_SIZE


def test_messages_go_both_ways() -> None:
    """Each direction counts for itself."""
    old, new = pair(fresh())
    assert (old.send(b"dump"), new.send(b"hello")) == (1, 1)
    found = new.take()
    assert (found.verdict, found.message.payload, found.message.sequence) == (Verdict.MESSAGE, b"dump", 1)
    assert old.take().message.payload == b"hello"
    assert old.take() == new.take() == Received(Verdict.EMPTY)


def test_a_full_ring_waits_for_the_reader() -> None:
    """Nothing that was not taken is overwritten."""
    old, new = pair(fresh(2))
    assert [old.send(bytes([n])) for n in range(3)] == [1, 2, None]
    assert new.take().message.payload == b"\0"
    assert old.send(b"\x03") == 3
    assert [new.take().message.payload for _ in range(2)] == [b"\1", b"\3"]


def test_looking_does_not_take() -> None:
    """A reader that dies before it takes finds the message again."""
    old, new = pair(fresh())
    old.send(b"once")
    assert new.peek() == new.peek() == new.take()
    assert new.peek().verdict is Verdict.EMPTY


@given(st.lists(st.binary(max_size=200), max_size=30))
@settings(max_examples=20)
def test_all_arrive_in_order(payloads: list[bytes]) -> None:
    """Across many rounds of the ring, new processes on both sides in between."""
    buffer = fresh(3)
    got = []
    for payload in payloads:
        old, new = pair(buffer)
        assert old.send(payload)
        got.append(new.take().message.payload)
    assert got == payloads


def test_the_largest_message_fits_and_no_larger_one() -> None:
    """A slot and not a byte more."""
    old, new = pair(fresh())
    old.send(b"x" * MAX_PAYLOAD)
    assert len(new.take().message.payload) == MAX_PAYLOAD
    with pytest.raises(BadInputError, match="too long"):
        old.send(b"x" * (MAX_PAYLOAD + 1))
    assert old.send(b"") == 2
    assert new.take().message.payload == b""


@pytest.mark.parametrize("reader_epoch", [1, 3])
def test_a_message_of_another_epoch_is_foreign(reader_epoch: int) -> None:
    """An earlier one and a later one; it stays until it is discarded."""
    buffer = fresh()
    Channel(buffer, Side.OLD, UPGRADE, 2).send(b"claim")
    reader = Channel(buffer, Side.NEW, UPGRADE, reader_epoch)
    assert reader.take().verdict is reader.take().verdict is Verdict.FOREIGN
    assert reader.discard().message.epoch == 2
    assert reader.discard().verdict is Verdict.EMPTY


def test_discarding_spares_messages() -> None:
    """Only what is foreign."""
    old, new = pair(fresh())
    old.send(b"keep")
    assert new.discard().verdict is Verdict.MESSAGE
    assert new.take().message.payload == b"keep"


def test_a_message_of_another_upgrade_is_foreign() -> None:
    """Left from a window that was made anew between: whole, but not ours."""
    buffer = fresh()
    old, new = pair(buffer)
    old.send(b"stale")
    at, name = slot_of(Side.OLD, 1), OTHER.text.encode().ljust(24, b"\0")
    frame = struct.pack("<QQ24sI", 1, 1, name, 5)
    buffer[at : at + FRAME] = frame + struct.pack("<I", zlib.crc32(b"stale", zlib.crc32(frame + bytes(4))))
    assert new.take().verdict is Verdict.FOREIGN


def test_a_window_of_another_upgrade_is_not_opened() -> None:
    """Nor one that is damaged, or none at all."""
    buffer = fresh()
    with pytest.raises(BadInputError, match="it is of 20261121"):
        Channel(buffer, Side.NEW, OTHER, 1)
    for damage in (0, 9, 13, 17, 25, 29, 40):
        broken = memoryview(bytearray(buffer))
        broken[damage] ^= 1
        with pytest.raises(BadInputError, match="missing or damaged"):
            Channel(broken, Side.NEW, UPGRADE, 1)
    with pytest.raises(BadInputError):
        Channel(memoryview(bytearray(window_format.channel_size())), Side.NEW, UPGRADE, 1)
    assert window_format.upgrade_in(memoryview(b"")) is None
    assert window_format.upgrade_in(buffer[:-1]) is None


@pytest.mark.parametrize(
    ("size", "slots"), [(window_format.channel_size(2) - 1, 2), (window_format.channel_size(2), 1), (0, 2)]
)
def test_a_window_that_is_too_small_is_refused(size: int, slots: int) -> None:
    """Before anything is written."""
    with pytest.raises(BadInputError):
        window_format.format_window(memoryview(bytearray(size)), UPGRADE, slots)


def test_making_a_window_clears_what_was_there() -> None:
    """No message of the last upgrade survives in it; what lies behind the channel is left alone."""
    buffer = memoryview(bytearray(b"\xff" * (window_format.channel_size(2) + 5)))
    window_format.format_window(buffer, UPGRADE, 2)
    assert not any(buffer[56 : window_format.channel_size(2)])
    assert bytes(buffer[-5:]) == b"\xff" * 5


class Stops(Exception):
    """The writer dies."""


class DyingBuffer:
    """The memory under a writer that dies after some stores; slices are stored byte by byte, from either end."""

    def __init__(self, target: memoryview, stores: int, backwards: bool) -> None:
        self.target, self.left, self.backwards = target, stores, backwards

    def store(self, at: int, data: bytes) -> None:
        order = range(len(data) - 1, -1, -1) if self.backwards else range(len(data))
        for offset in order:
            if self.left == 0:
                raise Stops
            self.left -= 1
            self.target[at + offset] = data[offset]

    def __setitem__(self, where: slice, data: bytes) -> None:
        self.store(where.start, bytes(data))

    def __getitem__(self, where: slice) -> memoryview:
        return self.target[where]


class DyingWords(DyingBuffer):
    """The same for 8-byte words, which are stored whole or not at all."""

    def __init__(self, buffer: DyingBuffer) -> None:
        self.buffer, self.words = buffer, buffer.target[: len(buffer.target) // 8 * 8].cast("Q")

    def __setitem__(self, at: int, value: int) -> None:
        if self.buffer.left == 0:
            raise Stops
        self.buffer.left -= 1
        self.words[at] = value

    def __getitem__(self, at: int) -> int:
        return self.words[at]


@given(st.integers(0, 80), st.booleans(), st.integers(0, 4))
def test_a_writer_that_dies_leaves_no_half_message(stores: int, backwards: bool, before: int) -> None:
    """Wherever it stops, in whatever order its stores came: nothing, or the whole message; and it can be sent again."""
    buffer = fresh()
    old, new = pair(buffer)
    for number in range(before):
        old.send(b"earlier, and longer than the next %d" % number)
        new.take()
    dying = DyingBuffer(buffer, stores, backwards)
    old._buffer, old._words = dying, DyingWords(dying)
    finished = False
    try:
        old.send(b"half a message?")
        finished = True
    except Stops:
        pass
    found = new.take()
    assert found.verdict is (Verdict.MESSAGE if finished else Verdict.EMPTY)
    old, new = pair(buffer)  # both start anew
    if not finished:
        assert old.send(b"again") == before + 1
        found = new.take()
    assert found.message.payload == (b"half a message?" if finished else b"again")


def test_two_processes_talk_at_full_speed() -> None:
    """On two CPUs, over really shared memory: every message arrives, in order, and none is ever seen torn."""
    shared = mmap.mmap(-1, window_format.channel_size(4))
    buffer = memoryview(shared)
    window_format.format_window(buffer, UPGRADE, 4)
    payloads = [struct.pack("<I", number) * (number % 700) for number in range(500)]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            writer = Channel(buffer, Side.OLD, UPGRADE, 1)
            deadline = time.monotonic() + 60
            for payload in payloads:
                while writer.send(payload) is None and time.monotonic() < deadline:
                    os.sched_yield()
            status = 0
        finally:
            os._exit(status)
    reader = Channel(buffer, Side.NEW, UPGRADE, 1)
    got: list[bytes] = []
    deadline = time.monotonic() + 60
    while len(got) < len(payloads) and time.monotonic() < deadline:
        found = reader.take()
        assert found.verdict in (Verdict.EMPTY, Verdict.MESSAGE)
        if found.message:
            got.append(found.message.payload)
        else:
            os.sched_yield()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert got == payloads


changes = st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=24)), min_size=1, max_size=6)


@given(changes, st.integers(0, 3))
@settings(max_examples=300)
def test_no_corruption_becomes_a_message(damage: list[tuple[int, bytes]], sent: int) -> None:
    """Whatever is overwritten in slots and pages: a message that arrives is one that was sent."""
    buffer = fresh()
    old, new = pair(buffer)
    payloads = [b"payload %d" % number * 3 for number in range(sent)]
    for payload in payloads[:2]:
        old.send(payload)
    for number, (at, data) in enumerate(damage):
        start = slot_of(Side.OLD, number % 2) + at if number % 3 else 4096 * (1 + number % 2) + 0x400 + at % 0x80
        buffer[start : start + len(data)] = data
    for _ in range(4):
        found = new.take()
        if found.verdict is Verdict.MESSAGE:
            assert found.message.payload in payloads
        else:
            assert found.message is None or found.verdict is Verdict.FOREIGN
    try:
        old.send(b"more")
    except BadInputError:
        pass  # the other side's count cannot be true


@given(st.integers(0, FRAME + 8), st.integers(1, 255))
def test_every_damaged_byte_of_a_message_is_noticed(at: int, change: int) -> None:
    """TORN, or EMPTY when the sequence number looks like an earlier one; never the message."""
    buffer = fresh()
    old, new = pair(buffer)
    old.send(b"nine byte")
    buffer[slot_of(Side.OLD, 1) + at] ^= change
    verdict = new.take().verdict
    assert verdict in (Verdict.TORN, Verdict.EMPTY)
    assert verdict is Verdict.TORN or at < 8


def test_a_count_that_cannot_be_true_is_damage() -> None:
    """The other side cannot have taken what was never sent."""
    buffer = fresh()
    old, _ = pair(buffer)
    struct.pack_into("<Q", buffer, 2 * 4096 + 0x440, 5)
    with pytest.raises(BadInputError, match="damaged"):
        old.send(b"x")


def test_each_side_says_who_it_is() -> None:
    """Boot, release and epoch; nothing before it has spoken, nothing when it is damaged."""
    buffer = fresh()
    old, new = pair(buffer, epoch=2)
    assert old.hello_of(Side.NEW) is None
    new.say_hello("11111111-1111-4111-8111-111111111111", "7.3.4+deb13-cloud-amd64")
    expected = Hello("11111111-1111-4111-8111-111111111111", "7.3.4+deb13-cloud-amd64", 2)
    assert old.hello_of(Side.NEW) == new.hello_of(Side.NEW) == expected
    assert old.hello_of(Side.OLD) is None
    for at in range(window._HELLO.size):
        buffer[2 * 4096 + at] ^= 0x10
        assert old.hello_of(Side.NEW) is None
        buffer[2 * 4096 + at] ^= 0x10
    with pytest.raises(BadInputError):
        new.say_hello("x" * 41, "6.12")


def test_hearts_beat_on_their_own_side() -> None:
    """Each count is its side's; it wraps around."""
    buffer = fresh()
    old, new = pair(buffer)
    new.beat()
    new.beat()
    assert (old.heartbeat(Side.NEW), old.heartbeat(Side.OLD)) == (2, 0)
    struct.pack_into("<Q", buffer, 2 * 4096 + 0x400, (1 << 64) - 1)
    new.beat()
    assert old.heartbeat(Side.NEW) == 0


def test_the_panic_flag_is_seen() -> None:
    """A word that the notifier of the new kernel writes."""
    buffer = fresh()
    old, _ = pair(buffer)
    assert old.panic == 0
    struct.pack_into("<I", buffer, window_format.PANIC_FLAG, 0xDEAD)
    assert old.panic == 0xDEAD


class Conversation(RuleBasedStateMachine):
    """Both sides, restarts at any time, against two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = fresh(2)
        self.ends = dict(zip(Side, pair(self.buffer), strict=True))
        self.on_the_way: dict[Side, list[bytes]] = {Side.OLD: [], Side.NEW: []}

    @rule(side=st.sampled_from(Side), payload=st.binary(max_size=40))
    def send(self, side: Side, payload: bytes) -> None:
        if self.ends[side].send(payload) is None:
            assert len(self.on_the_way[side]) == 2
        else:
            self.on_the_way[side].append(payload)

    @rule(side=st.sampled_from(Side))
    def take(self, side: Side) -> None:
        found = self.ends[side].take()
        waiting = self.on_the_way[side.other]
        if waiting:
            assert found.message.payload == waiting.pop(0)
        else:
            assert found.verdict is Verdict.EMPTY

    @rule(side=st.sampled_from(Side))
    def restart(self, side: Side) -> None:
        self.ends[side] = Channel(self.buffer, side, UPGRADE, 1)

    @invariant()
    def counts_agree(self) -> None:
        for side in Side:
            taken = self.ends[side.other].taken(side.other)
            assert self.ends[side].last_sent - taken == len(self.on_the_way[side])


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

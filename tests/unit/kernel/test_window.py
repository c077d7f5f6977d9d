"""The shared window: messages arrive whole, in order and once."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kupgrade.errors import BadInputError
from kupgrade.kernel import window, window_format
from kupgrade.kernel.window import MAX_PAYLOAD, Channel, Hello, Received, Side, Verdict
from kupgrade.model.ids import UpgradeId
from tests.unit.kernel.shared_windows import FRAME, UPGRADE, fresh, pair, slot_of

OTHER = UpgradeId("20261121-041503-000000")


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

"""What becomes of the shared window when a writer dies or memory is overwritten: no corruption becomes a message."""

from __future__ import annotations

import mmap
import os
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.kernel import window_format
from kupgrade.kernel.window import Channel, Side, Verdict
from tests.unit.kernel.shared_windows import FRAME, UPGRADE, fresh, pair, slot_of


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

"""The shared window as a channel between two kernels: a header, each side's own page, a ring of messages each way.

Everything works on a writable buffer, in use the mapping of memory that both kernels see. There is one writer for each
byte: the old kernel's process writes the header, its own page and the ring old to new; the other side the rest.

Order. x86 makes stores to write-back memory visible in the order in which they are made (TSO, Intel SDM vol. 3A,
9.2); both kernels must map the window so. CPython makes the stores of one thread in program order, but a slice may be
stored in any order within one assignment, and struct.pack_into may clear its target first. So a message is published
in three steps, over one that was taken long ago: payload; frame with length and checksum; sequence number, as one
aligned 8-byte store (memoryview.cast("Q")). A reader looks at the number first and believes a message only when the
checksum over number, epoch, upgrade ID, length and payload agrees. What it sees of a half-done publication is EMPTY,
by order alone; the checksum is for crashes and wild writes. It is CRC32: it misses one damaged message in 2^32, and is
no guard against an adversary, who would own the memory anyway.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass

from kupgrade.errors import BadInputError
from kupgrade.kernel.window_format import PAGE, PANIC_FLAG, SLOT_SIZE, upgrade_bytes, upgrade_in
from kupgrade.model.ids import UpgradeId

_FRAME = struct.Struct("<QQ24sII")  # sequence number, epoch, upgrade ID, length, CRC
_HELLO = struct.Struct("<QII40s72s")  # epoch, length of the rest, CRC, boot ID, release
# In a side's page, each in a cache line of its own: heartbeat; the number of the last message it has taken; the new
# side's word that it is committed; how many processes of this side have begun, and what was taken before the last did.
_BEAT, _TAKEN, _COMMITTED, _BEGUN, _BEFORE = 0x400, 0x440, 0x480, 0x4C0, 0x500

MAX_PAYLOAD = SLOT_SIZE - _FRAME.size


class Side(enum.IntEnum):
    """Who writes: the old kernel's process or the new one's."""

    OLD = 0
    NEW = 1

    @property
    def other(self) -> Side:
        """The one at the other end."""
        return Side.NEW if self is Side.OLD else Side.OLD


class Verdict(enum.Enum):
    """What a reader found."""

    EMPTY = "empty"  # nothing new
    MESSAGE = "message"
    TORN = "torn"  # not whole: look again; what stays torn is damage
    FOREIGN = "foreign"  # whole, but of another epoch or upgrade


@dataclass(frozen=True, slots=True)
class Hello:
    """What a side says about itself: which boot of which release, and the epoch it has authority in."""

    boot_id: str
    release: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `sequence` counts from 1 in each direction."""

    sequence: int
    epoch: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """A verdict, and the message when it is MESSAGE or FOREIGN."""

    verdict: Verdict
    message: Message | None = None


def _words(buffer: memoryview) -> memoryview:
    """The buffer as 8-byte words: an assignment to one is a single store."""
    return buffer[: len(buffer) // 8 * 8].cast("Q")


class Channel:
    """One side's end of the channel, in one epoch.

    What was sent and taken is kept in the window: a new process of the same side goes on where the last one stopped.
    """

    __slots__ = ("_buffer", "_last_sent", "_name", "_side", "_slots", "_words", "epoch", "upgrade")

    def __init__(self, buffer: memoryview, side: Side, upgrade: UpgradeId, epoch: int) -> None:
        """Raises BadInputError when there is no whole window of this upgrade in the buffer."""
        found = upgrade_in(buffer)
        if found != upgrade:
            why = f"it is of {found}" if found else "its header is missing or damaged"
            raise BadInputError(f"There is no shared window of {upgrade}", why)
        self._buffer, self._side, self.upgrade, self.epoch = buffer, side, upgrade, epoch
        self._slots: int = struct.unpack_from("<I", buffer, 24)[0]
        self._words = _words(buffer)
        self._name = upgrade_bytes(upgrade)
        self._last_sent = max(
            (message.sequence for slot in range(self._slots) if (message := self._read(side, slot)[1])), default=0
        )

    def _page(self, side: Side) -> int:
        return PAGE * (1 + side)

    def _slot(self, side: Side, slot: int) -> int:
        return 3 * PAGE + (side * self._slots + slot) * SLOT_SIZE

    def _checksum(self, frame: tuple[int, int, bytes, int], payload: bytes | memoryview) -> int:
        return zlib.crc32(payload, zlib.crc32(_FRAME.pack(*frame, 0)))

    def _read(self, side: Side, slot: int) -> tuple[int, Message | None, bytes]:
        """The sequence number seen first in a slot, the message when it is whole, its upgrade ID."""
        at = self._slot(side, slot)
        seen: int = self._words[at // 8]
        sequence, epoch, name, length, crc = _FRAME.unpack_from(self._buffer, at)
        if length > MAX_PAYLOAD:
            return seen, None, name
        payload = bytes(self._buffer[at + _FRAME.size : at + _FRAME.size + length])
        if sequence == 0 or self._checksum((sequence, epoch, name, length), payload) != crc:
            return seen, None, name
        return seen, Message(sequence, epoch, payload), name

    def send(self, payload: bytes) -> int | None:
        """Publish a message and return its sequence number; None when the other side has not taken enough yet.

        Raises BadInputError for a payload over MAX_PAYLOAD and when the other side's count cannot be true.
        """
        if len(payload) > MAX_PAYLOAD:
            raise BadInputError("A message is too long for the shared window", f"{len(payload)} bytes of {MAX_PAYLOAD}")
        taken = self.taken(self._side.other)
        if taken > self._last_sent:
            why = f"{taken} messages are said to be taken, {self._last_sent} were sent"
            raise BadInputError("The shared window is damaged", why)
        if self._last_sent - taken >= self._slots:
            return None
        sequence = self._last_sent + 1
        at = self._slot(self._side, sequence % self._slots)
        frame = (sequence, self.epoch, self._name, len(payload))
        self._buffer[at + _FRAME.size : at + _FRAME.size + len(payload)] = payload
        whole = _FRAME.pack(*frame, self._checksum(frame, payload))
        self._buffer[at + 8 : at + _FRAME.size] = whole[8:]
        self._words[at // 8] = sequence
        self._last_sent = sequence
        return sequence

    def peek(self) -> Received:
        """The next message of the other side, left where it is."""
        expected = self.taken(self._side) + 1
        seen, message, name = self._read(self._side.other, expected % self._slots)
        if message is None or message.sequence != expected:
            # An earlier message of this slot, or none: nothing has come yet. Any other number is damage.
            earlier = seen == 0 or (seen < expected and seen % self._slots == expected % self._slots)
            return Received(Verdict.EMPTY if earlier else Verdict.TORN)
        if name != self._name or message.epoch != self.epoch:
            return Received(Verdict.FOREIGN, message)
        return Received(Verdict.MESSAGE, message)

    def take(self) -> Received:
        """As `peek`, and a MESSAGE is marked as taken. A FOREIGN one stays: see `discard`."""
        found = self.peek()
        if found.verdict is Verdict.MESSAGE:
            self._mark_taken(found)
        return found

    def discard(self) -> Received:
        """Mark a FOREIGN message as taken, for instance one of an epoch that has ended; returns what was found."""
        found = self.peek()
        if found.verdict is Verdict.FOREIGN:
            self._mark_taken(found)
        return found

    def _mark_taken(self, found: Received) -> None:
        if found.message:
            self._words[(self._page(self._side) + _TAKEN) // 8] = found.message.sequence

    def taken(self, side: Side) -> int:
        """The number of the last message that a side has taken."""
        count: int = self._words[(self._page(side) + _TAKEN) // 8]
        return count

    @property
    def last_sent(self) -> int:
        """The number of the last message that this side has sent; 0 before the first."""
        return self._last_sent

    def say_hello(self, boot_id: str, release: str) -> None:
        """Tell the other side who is here. Raises BadInputError for text that is too long."""
        names = (boot_id.encode(), release.encode())
        if len(names[0]) > 40 or len(names[1]) > 72:
            raise BadInputError("A boot ID or kernel release is too long", f"{boot_id[:60]!r}, {release[:80]!r}")
        at, fields = self._page(self._side), (self.epoch, sum(map(len, names)))
        crc = zlib.crc32(_HELLO.pack(*fields, 0, *names))
        self._buffer[at : at + _HELLO.size] = _HELLO.pack(*fields, crc, *names)

    def hello_of(self, side: Side) -> Hello | None:
        """What a side said of itself; None when it has said nothing, or is just saying it."""
        epoch, length, crc, boot_id, release = _HELLO.unpack_from(self._buffer, self._page(side))
        names = (boot_id.rstrip(b"\0"), release.rstrip(b"\0"))
        if length == 0 or sum(map(len, names)) != length or zlib.crc32(_HELLO.pack(epoch, length, 0, *names)) != crc:
            return None
        return Hello(names[0].decode(errors="replace"), names[1].decode(errors="replace"), epoch)

    def begin(self) -> None:
        """A process of this side begins, alone: what its predecessor has taken and not answered it knows nothing of.

        Comes before the first message is taken.
        """
        page = self._page(self._side)
        self._words[(page + _BEFORE) // 8] = self.taken(self._side)
        self._words[(page + _BEGUN) // 8] += 1

    def begun(self, side: Side) -> int:
        """How many processes of a side have begun."""
        count: int = self._words[(self._page(side) + _BEGUN) // 8]
        return count

    def taken_before(self, side: Side) -> int:
        """The last message that was taken before the present process of a side began."""
        count: int = self._words[(self._page(side) + _BEFORE) // 8]
        return count

    def beat(self) -> None:
        """Count the heartbeat on. One thread or process of a side does this, and nothing else of it does."""
        at = (self._page(self._side) + _BEAT) // 8
        self._words[at] = (self._words[at] + 1) & (1 << 64) - 1

    def heartbeat(self, side: Side) -> int:
        """A side's count; one that does not change is a side that does not run."""
        count: int = self._words[(self._page(side) + _BEAT) // 8]
        return count

    def declare_commit(self) -> None:
        """The new side: from now on the old kernel is dead. Comes before the first write to what that has mounted."""
        self._words[(self._page(Side.NEW) + _COMMITTED) // 8] = 1

    @property
    def committed(self) -> bool:
        """Whether the new side has declared its commit. Final only once that side has been fenced, or when True."""
        return self._words[(self._page(Side.NEW) + _COMMITTED) // 8] != 0

    def release(self) -> None:
        """Let go of the buffer, so that the mapping behind it can go; the channel is of no use any more."""
        self._words.release()
        self._buffer.release()

    @property
    def panic(self) -> int:
        """What the new kernel's panic notifier left; 0 while it lives."""
        flag: int = self._words[PANIC_FLAG // 8]
        return flag

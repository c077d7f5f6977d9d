"""What a page server knows, in memory that outlives it: figures, and a log of every event of the processes.

One file in /run, mapped by whoever serves and whoever asks. The kernel writes an event right into the log (readv), so
that there is no moment in which it was read and is not recorded; a server that goes on after a killed one finds it
there. A record counts once its kind is written, which is written last. When a half of the file is full, what is still
true is written into the other one, and then one number says which half counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.kernel.libc import reported

_MAGIC = 0x31304C4C4946474B
_HEAD = 4096  # bytes, before the records
_TEXT, _MAX_TEXT = 2048, 1024  # why it failed: length and UTF-8
_RECORD = struct.Struct("<IIQQQQ")  # kind, space; three words, or the kernel's message in all four
RECORDS = 1 << 15  # in each half
_NUMBER = struct.Struct("<Q")
_KIND = struct.Struct("<I")


class Field(enum.IntEnum):
    """Numbers in the head, 64 bits each. Bytes, nanoseconds of CLOCK_MONOTONIC, PIDs and their start times."""

    MAGIC = 0
    HALF = 1
    STAGE = 2
    SERVER = 3  # and the two others of the ring, each followed by its start time, 0 for one that has not noted it yet
    SERVER_SINCE = 4
    KEEPER = 5
    KEEPER_SINCE = 6
    TOTAL = 7
    PLACED = 8
    FAULTS = 9
    RESTARTS = 10
    RESTORED_AT = 11
    FILLED_AT = 12
    AT_THAW = 13  # bytes placed when the workload was let run
    EVENTS = 14
    SPARE = 15
    SPARE_SINCE = 16
    CHECKS = 17  # 1: what is placed is summed before


class Stage(enum.IntEnum):
    """How far it is. From RESTORING on processes have descriptors; from FILLING on criu has ended well."""

    WAITING = 0
    RESTORING = 1
    FILLING = 2
    DONE = 3
    FAILED = 4


class Kind(enum.IntEnum):
    """Of a record; its words."""

    NONE = 0
    MESSAGE = 1  # of the space's descriptor: struct uffd_msg
    SPACE = 2  # descriptor, PID (0: forked by a workload), descriptor of its process (pidfd) plus one
    RANGE = 3  # start, end, image
    CLOSING = 4
    CLOSED = 5
    COUNT = 6  # of spaces that there ever were
    FILLED = 7  # start, end


@dataclass(frozen=True, slots=True)
class Entry:
    """One record; `raw`: the 32 bytes of its words."""

    kind: Kind
    space: int
    words: tuple[int, int, int]
    raw: bytes


class LogFullError(KupgradeError):
    """More is true at once than a half holds."""


class FillLog:
    """The file, mapped."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """A new one has no name before `publish`. Raises KernelError, or KupgradeError when it is none."""
        self.path = path
        size = _HEAD + 2 * RECORDS * _RECORD.size
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        with reported("open", path):
            fd = os.open(self._unpublished if create else path, flags, 0o600)
        try:
            if create:
                os.ftruncate(fd, size)
            elif os.fstat(fd).st_size != size:
                raise KupgradeError(f"{path} is no log of a page server", "its size is another one")
            self.map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        if create:
            self[Field.MAGIC] = _MAGIC
        elif self[Field.MAGIC] != _MAGIC:
            raise KupgradeError(f"{path} is no log of a page server", "it does not begin like one")
        self.next = 0
        self._begin = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    @property
    def _unpublished(self) -> Path:
        return self.path.with_suffix(".new")

    def publish(self) -> None:
        """Give a new one its name: whoever asks finds all that is true. Raises KernelError."""
        with reported("rename", self.path):
            self._unpublished.rename(self.path)

    def address(self, field: Field) -> int:
        """Where a number is in our memory, for the kernel to write it."""
        return self._begin + field * 8

    def __getitem__(self, field: Field) -> int:
        return int(_NUMBER.unpack_from(self.map, field * 8)[0])

    def __setitem__(self, field: Field, value: int) -> None:
        _NUMBER.pack_into(self.map, field * 8, value)

    @property
    def stage(self) -> Stage:
        """How far it is."""
        return Stage(self[Field.STAGE])

    @property
    def failure(self) -> str:
        """Why it failed."""
        size = min(_KIND.unpack_from(self.map, _TEXT)[0], _MAX_TEXT)
        return self.map[_TEXT + 4 : _TEXT + 4 + size].decode(errors="replace")

    def explain(self, why: str) -> None:
        """Note why it fails. The first reason stays."""
        if not self.failure:
            text = why.encode()[:_MAX_TEXT]
            self.map[_TEXT + 4 : _TEXT + 4 + len(text)] = text
            _KIND.pack_into(self.map, _TEXT, len(text))

    def _at(self, number: int, half: int | None = None) -> int:
        return _HEAD + ((self[Field.HALF] if half is None else half) * RECORDS + number) * _RECORD.size

    def entries(self) -> Iterator[Entry]:
        """Every record; afterwards the next one is written behind them."""
        self.next = 0
        while self.next < RECORDS:
            at = self._at(self.next)
            kind, space, *words = _RECORD.unpack_from(self.map, at)
            if kind == Kind.NONE:
                return
            self.next += 1
            yield Entry(Kind(kind), space, (words[0], words[1], words[2]), self.map[at + 8 : at + _RECORD.size])

    @property
    def full(self) -> bool:
        """Whether it is time for `compact`: some records are left for what cannot wait."""
        return self.next > RECORDS - 64

    def add(self, kind: Kind, space: int, *words: int) -> None:
        """Append a record. Raises LogFullError."""
        self._put(self._at(self._room()), kind, space, words)
        self.next += 1

    def _room(self) -> int:
        if self.next >= RECORDS:
            raise LogFullError("The page server's log is full", f"{RECORDS} records are true at once")
        return self.next

    def _put(self, at: int, kind: Kind, space: int, words: tuple[int, ...]) -> None:
        _RECORD.pack_into(self.map, at, Kind.NONE, space, *words, *[0] * (4 - len(words)))
        _KIND.pack_into(self.map, at, kind)

    @contextlib.contextmanager
    def slot(self, space: int) -> Iterator[memoryview]:
        """Where the kernel shall write the next message of a space; 32 bytes. A record, once a message is there."""
        at = self._at(self._room())
        self._put(at, Kind.MESSAGE, space, ())
        with memoryview(self.map) as whole, whole[at + 8 : at + _RECORD.size] as place:
            yield place

    def keep(self) -> None:
        """The message in the slot is a record for good."""
        self.next += 1

    def forget(self) -> None:
        """What is in the slot was dealt with and is of no further meaning."""
        _KIND.pack_into(self.map, self._at(self.next), Kind.NONE)

    def compact(self, truth: Iterable[tuple[Kind, int, tuple[int, ...]]]) -> None:
        """Begin the other half with what is true now. Raises LogFullError: then this half goes on to count."""
        other = 1 - self[Field.HALF]
        start = self._at(0, other)
        self.map[start : start + RECORDS * _RECORD.size] = bytes(RECORDS * _RECORD.size)
        number = 0
        for kind, space, words in truth:
            if number >= RECORDS - 128:
                raise LogFullError("The page server's log is full", f"{number} records are true at once")
            self._put(self._at(number, other), kind, space, words)
            number += 1
        self[Field.HALF] = other
        self.next = number

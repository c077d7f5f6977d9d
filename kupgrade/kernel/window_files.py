"""Files in the shared window: image files that one kernel writes and the other reads, with a table and checksums.

The area has one writer. Contents come first, then the table, then its head with a new generation number; a reader that
finds a head and a table which do not belong together is told so. Contents are written into the mapping and read
out of it directly: one copy on each side.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.kernel.libc import reported

MAGIC = b"KUPGFIL\0"
FORMAT = 1
PAGE = 4096
CHUNK = 8 << 20  # bytes in one system call or checksum round
DEFAULT_CAPACITY = 4096
MAX_NAME = 224

_HEAD = struct.Struct("<8sIIQQII")  # magic, format, capacity, size of the area, generation, count, CRC
_ENTRY = struct.Struct("<224sQQII")  # name, offset, length, CRC, flags
_UNCHECKED = 1  # flag: no CRC; whoever reads the file has another checksum of it
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+:-]*(?:/[A-Za-z0-9_][A-Za-z0-9._@+:-]*)*")


@dataclass(frozen=True, slots=True)
class WindowFile:
    """A file in the area: a relative path, where it lies in the area, its length in bytes, its CRC32 if it has one."""

    name: str
    offset: int
    length: int
    crc: int | None


def _checked(name: str) -> str:
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise BadInputError(f"{name!r:.60} cannot be a file in the shared window", "expected a plain relative path")
    return name


def _contents_start(capacity: int) -> int:
    return -(-(_HEAD.size + capacity * _ENTRY.size) // PAGE) * PAGE


def _crc(view: memoryview) -> int:
    found = 0
    for start in range(0, len(view), CHUNK):
        found = zlib.crc32(view[start : start + CHUNK], found)
    return found


def _head(capacity: int, size: int, generation: int, table: bytes) -> bytes:
    fields = (MAGIC, FORMAT, capacity, size, generation, len(table) // _ENTRY.size)
    return _HEAD.pack(*fields, zlib.crc32(table, zlib.crc32(_HEAD.pack(*fields, 0))))


def _row(file: WindowFile) -> bytes:
    flags = _UNCHECKED if file.crc is None else 0
    return _ENTRY.pack(file.name.encode(), file.offset, file.length, file.crc or 0, flags)


class FileWriter:
    """The writing side. Starts with an empty table; `publish` makes what was added visible, and may be called again."""

    __slots__ = ("_buffer", "_capacity", "_checked", "_files", "_generation", "_next")

    def __init__(self, buffer: memoryview, capacity: int = DEFAULT_CAPACITY, *, checked: bool = True) -> None:
        """`capacity`: how many files the table can hold. Raises BadInputError when the area is too small for it.

        Not `checked`: contents get no checksum, for a reader that has one from elsewhere.
        """
        start = _contents_start(capacity)
        if capacity < 1 or len(buffer) < start:
            raise BadInputError(
                "The shared window is too small for files", f"{len(buffer)} bytes, the table needs {start}"
            )
        self._buffer, self._capacity, self._next, self._checked = buffer, capacity, start, checked
        self._files: list[WindowFile] = []
        self._generation = 0
        self.publish()

    @property
    def room(self) -> int:
        """Bytes that are left for contents."""
        return max(0, len(self._buffer) - self._next)

    @property
    def files(self) -> tuple[WindowFile, ...]:
        """What was added so far."""
        return tuple(self._files)

    def _place(self, name: str, length: int) -> memoryview:
        _checked(name)
        if len(self._files) >= self._capacity:
            raise BadInputError("The shared window holds too many files", f"its table has room for {self._capacity}")
        if any(each.name == name for each in self._files):
            raise BadInputError(f"{name} is in the shared window already")
        if length > self.room:
            raise BadInputError(f"{name} does not fit into the shared window", f"{length} bytes, {self.room} are left")
        return self._buffer[self._next : self._next + length]

    def _added(self, name: str, view: memoryview) -> WindowFile:
        added = WindowFile(name, self._next, len(view), _crc(view) if self._checked else None)
        self._files.append(added)
        self._next += -(-len(view) // PAGE) * PAGE
        return added

    def add(self, name: str, content: bytes) -> WindowFile:
        """Put bytes in. Raises BadInputError: the name is no plain relative path, or is there, or there is no room."""
        view = self._place(name, len(content))
        view[:] = content
        return self._added(name, view)

    def add_file(self, name: str, path: Path) -> WindowFile:
        """Read a file straight into the window. Raises KernelError, and BadInputError as `add` and when it shrinks."""
        with reported("open", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with reported("read", path):
                view = self._place(name, os.fstat(fd).st_size)
                done = 0
                while done < len(view):
                    count = os.readv(fd, [view[done : done + CHUNK]])
                    if count == 0:
                        raise BadInputError(f"{path} became shorter while it was read", f"{done} of {len(view)} bytes")
                    done += count
        finally:
            os.close(fd)
        return self._added(name, view)

    def publish(self) -> None:
        """Make the table of everything added so far the one that readers see."""
        self._generation += 1
        table = b"".join(map(_row, self._files))
        self._buffer[_HEAD.size : _HEAD.size + len(table)] = table
        self._buffer[: _HEAD.size] = _head(self._capacity, len(self._buffer), self._generation, table)

    def wipe(self) -> None:
        """Overwrite contents and table with zeros: images hold the memory of processes, secrets and all."""
        wipe(self._buffer[: self._next])
        self._files, self._next = [], _contents_start(self._capacity)


def wipe(view: memoryview) -> None:
    """Overwrite with zeros."""
    zeros = bytes(min(CHUNK, len(view)))
    for start in range(0, len(view), CHUNK):
        end = min(start + CHUNK, len(view))
        view[start:end] = zeros[: end - start]


def read_table(buffer: memoryview) -> tuple[WindowFile, ...]:
    """The files of the area. Raises BadInputError when there is no table, or it is torn or damaged.

    A table that was read is a snapshot; its files stay whole until the writer wipes them.
    """
    if len(buffer) < _HEAD.size:
        raise BadInputError("There are no files in the shared window", f"it has {len(buffer)} bytes")
    head = bytes(buffer[: _HEAD.size])
    _, _, capacity, size, generation, count, _ = _HEAD.unpack(head)
    end = _HEAD.size + count * _ENTRY.size
    if head[:8] != MAGIC:
        raise BadInputError("There are no files in the shared window", "the mark of a table is missing")
    table = bytes(buffer[_HEAD.size : end]) if count <= capacity and end <= len(buffer) else b""
    if size != len(buffer) or len(table) != count * _ENTRY.size or head != _head(capacity, size, generation, table):
        raise BadInputError("The table of files in the shared window is damaged", "its checksum is wrong")
    start = _contents_start(capacity)
    found = []
    for raw, offset, length, crc, flags in _ENTRY.iter_unpack(table):
        name = _checked(raw.rstrip(b"\0").decode(errors="replace"))
        if offset < start or offset + length > size:
            raise BadInputError("The table of files in the shared window is damaged", f"{name} lies outside")
        found.append(WindowFile(name, offset, length, None if flags == _UNCHECKED else crc))
    return tuple(found)


def content(buffer: memoryview, file: WindowFile) -> memoryview:
    """A file's bytes, as a view. Raises BadInputError when it has a checksum that says otherwise."""
    view = buffer[file.offset : file.offset + file.length]
    if len(view) != file.length or (file.crc is not None and _crc(view) != file.crc):
        raise BadInputError(f"{file.name} in the shared window is damaged", "its checksum is wrong")
    return view


def extract(buffer: memoryview, files: Iterable[WindowFile], folder: Path) -> None:
    """Write files below `folder`, readable by their owner only, straight from the window.

    Raises BadInputError for a damaged one and KernelError: what was written until then stays.
    """
    for file in files:
        path = folder / _checked(file.name)
        view = content(buffer, file)
        with reported("write", path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                done = 0
                while done < len(view):
                    done += os.write(fd, view[done : done + CHUNK])
            finally:
                os.close(fd)

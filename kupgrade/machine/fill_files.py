"""Files with pages, mapped for reading, and read before anything of them is placed."""

from __future__ import annotations

import ctypes
import os
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host.manifest import CHUNK, ImageFile
from kupgrade.host.memory_images import Extent, Memory
from kupgrade.kernel import userfaultfd
from kupgrade.kernel.libc import reported


class PlacingError(KupgradeError):
    """A page cannot be placed: whoever waits for it must not go on."""


@dataclass(frozen=True, slots=True)
class Source:
    """Pages of one process in our memory: extents by address, `at` is where each one's file is mapped for us."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    at: tuple[int, ...]

    def find(self, address: int) -> tuple[int, int, int]:
        """The pages at an address, or the next ones after it: their address, where they are, and how many bytes.

        No bytes: none come.
        """
        number = bisect_right(self.starts, address) - 1
        if number < 0 or self.ends[number] <= address:
            number += 1
            if number == len(self.starts):
                return address, 0, 0
            address = self.starts[number]
        return address, self.at[number] + address - self.starts[number], self.ends[number] - address


@dataclass(frozen=True, slots=True)
class Mapped:
    """A file in our memory: address, bytes; its chunks' sums (none: it was read before), and which were right."""

    path: Path
    at: int
    size: int
    sums: Sequence[int]
    good: bytearray


class Files:
    """All that are mapped."""

    def __init__(self, mapped: Sequence[Mapped]) -> None:
        self._mapped = sorted((each for each in mapped if each.size), key=lambda each: each.at)
        self._starts = [each.at for each in self._mapped]

    def check(self, address: int, length: int) -> None:
        """Have the bytes at an address of ours in hand, and be sure of them. Raises PlacingError."""
        if not userfaultfd.fetch(address, length):
            raise PlacingError("Memory cannot be placed", "its image cannot be read")
        file = self._mapped[bisect_right(self._starts, address) - 1]
        if not file.sums:
            return
        first, last = (address - file.at) // CHUNK, (address + length - 1 - file.at) // CHUNK
        for number in range(first, last + 1):
            if not file.good[number]:
                self._sum(file, number)

    def _sum(self, file: Mapped, number: int) -> None:
        begin = number * CHUNK
        size = min(CHUNK, file.size - begin)
        if not userfaultfd.fetch(file.at + begin, size):
            raise PlacingError("Memory cannot be placed", f"{file.path} cannot be read")
        if zlib.crc32((ctypes.c_char * size).from_address(file.at + begin)) != file.sums[number]:
            why = f"{file.path} is damaged: the checksum of {size} bytes from {begin} on is wrong"
            raise PlacingError("Memory cannot be placed", why)
        file.good[number] = 1


def load(memories: Sequence[Memory], sums: Mapping[Path, ImageFile] | None) -> tuple[dict[int, Source], Files]:
    """Map every file with pages; sources by PID. Raises KernelError, and BadInputError for files that do not fit."""
    maps: dict[Path, Mapped] = {}
    found = {}
    for each in memories:
        for extent in each.extents:
            if extent.file not in maps:
                maps[extent.file] = _map(extent.file, sums)
            if extent.offset + extent.end - extent.start > maps[extent.file].size:
                raise BadInputError("A checkpoint image is cut off", str(extent.file))
        found[each.pid] = Source(
            tuple(extent.start for extent in each.extents),
            tuple(extent.end for extent in each.extents),
            tuple(maps[extent.file].at + extent.offset for extent in each.extents),
        )
    return found, Files(tuple(maps.values()))


def check_now(extents: Sequence[Extent], sums: Mapping[Path, ImageFile]) -> None:
    """Read the chunks that these pages are in. Raises BadInputError, and KernelError."""
    files: dict[Path, Mapped] = {}
    for each in extents:
        if each.file not in files:
            files[each.file] = _map(each.file, sums)
    held = Files(tuple(files.values()))
    for each in extents:
        try:
            held.check(files[each.file].at + each.offset, each.end - each.start)
        except PlacingError as error:
            raise BadInputError("A checkpoint image is damaged", error.why) from error


def _map(path: Path, sums: Mapping[Path, ImageFile] | None) -> Mapped:
    known = None if sums is None else sums.get(path.parent.resolve() / path.name)
    if sums is not None and known is None:
        raise BadInputError("A checkpoint image is not in the manifest", str(path))
    with reported("open", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        at = userfaultfd.map_file(fd, size) if size else 0
    finally:
        os.close(fd)
    if known is not None and known.size != size:
        raise BadInputError("A checkpoint image is damaged", f"{path}: {size} bytes, recorded are {known.size}")
    chunks = known.sums if known is not None else ()
    return Mapped(path, at, size, chunks, bytearray(len(chunks)))

"""Where in checkpoint images the pages of a process are, and images that have criu leave them out.

Read are pagemap-PID.img and mm-PID.img (criu's pagemap.proto, mm.proto, vma.proto; magic.h), without pycriu, whose
import costs more than all the reading. A chain of rounds: what an image marks as its parent's is in the newest earlier
round that has it. criu leaves out, for whoever serves userfaultfd, what is marked lazy; it marks so what a dump writes
itself, but not what it leaves to its parent. Hence images of our own: links to those there are, and pagemaps in which
all pages of the larger anonymous mappings are marked so.
"""

from __future__ import annotations

import mmap
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host.images import make_private

PAGE = mmap.PAGESIZE
LEAST = 1 << 20  # bytes of a mapping: smaller ones (stacks, thread areas) are touched at once and are copied by criu
PARENT = "parent"

_MAGIC = struct.Struct("<II")
_COMMON, _PAGEMAP, _MM = 0x54564319, 0x56084025, 0x57492820
_SIZE = struct.Struct("<I")
_IN_PARENT, _LAZY, _PRESENT = 1, 2, 4  # PE_*: criu/include/pagemap.h
_PAGEMAP_NAME = re.compile(r"pagemap-([0-9]+)\.img")
_MM_VMAS = 14  # field number in mm_entry
# vma_entry: status (criu/include/image.h) and mmap(2) flags
_REGULAR, _VSYSCALL, _VDSO, _ANON_PRIVATE, _VVAR = 1 << 0, 1 << 2, 1 << 3, 1 << 9, 1 << 12
_WIPE_ON_FORK = 1 << 18  # a bit for each madvise(2), criu's vma.proto
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_LOCKED, _MAP_HUGETLB, _MAP_GROWSDOWN = 0x02, 0x20, 0x2000, 0x40000, 0x100

Fields = list[tuple[int, int | bytes]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of pages in a pagemap: address in bytes, number of pages, PE_* flags."""

    start: int
    pages: int
    flags: int

    @property
    def end(self) -> int:
        """Address after it."""
        return self.start + self.pages * PAGE


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the pages from `start` to before `end` are: `offset` in `file`, in bytes."""

    start: int
    end: int
    file: Path
    offset: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one process that is not restored by criu: which addresses, and where what was there is.

    What lies in `regions` and in no extent was never touched: zeros.
    """

    pid: int
    regions: tuple[tuple[int, int], ...]
    extents: tuple[Extent, ...]

    @property
    def size(self) -> int:
        """Bytes in images."""
        return sum(each.end - each.start for each in self.extents)


def processes(directory: Path) -> tuple[int, ...]:
    """The PIDs that have memory in these images."""
    found = (_PAGEMAP_NAME.fullmatch(path.name) for path in directory.iterdir())
    return tuple(sorted(int(match[1]) for match in found if match))


def memory(directory: Path, pid: int) -> Memory:
    """What criu would leave out of a process. Raises BadInputError for images that are damaged or not complete."""
    regions = _regions(directory / f"mm-{pid}.img")
    return Memory(pid, regions, tuple(_clip(_extents(directory, f"pagemap-{pid}.img"), regions)))


def left_to_criu(directory: Path, memories: Sequence[Memory]) -> tuple[Extent, ...]:
    """Every page in the images that is none of these memories': criu reads it, and also what processes share.

    Raises BadInputError.
    """
    regions = {f"pagemap-{each.pid}.img": each.regions for each in memories}
    found: list[Extent] = []
    for path in sorted(directory.glob("pagemap-*.img")):
        held = regions.get(path.name, ())
        edges = [0, *(border for region in held for border in region), 1 << 64]
        found += _clip(_extents(directory, path.name), list(zip(edges[::2], edges[1::2], strict=True)))
    return tuple(found)


def make_view(directory: Path, view: Path, memories: Sequence[Memory]) -> None:
    """Images below `view` from which criu, told to be lazy, restores everything but these memories. May be done again.

    Raises BadInputError for damaged images.
    """
    make_private(view)
    for stale in view.iterdir():
        stale.unlink()
    regions = {f"pagemap-{each.pid}.img": each.regions for each in memories}
    for path in directory.iterdir():
        if path.name in regions:
            (view / path.name).write_bytes(_marked(path, regions[path.name]))
        else:
            (view / path.name).symlink_to(path)


def _records(path: Path, magic: int) -> Iterator[bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError("A checkpoint image cannot be read", f"{path}: {error.strerror}") from error
    if len(data) < _MAGIC.size or _MAGIC.unpack_from(data) != (_COMMON, magic):
        raise BadInputError("A checkpoint image is of another kind than its name says", str(path))
    at = _MAGIC.size
    while at < len(data):
        if at + _SIZE.size > len(data):
            raise BadInputError("A checkpoint image is cut off", str(path))
        end = at + _SIZE.size + _SIZE.unpack_from(data, at)[0]
        if end > len(data):
            raise BadInputError("A checkpoint image is cut off", str(path))
        yield data[at + _SIZE.size : end]
        at = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BadInputError("A checkpoint image is damaged", "a number in it does not end")


def _fields(data: bytes) -> Fields:
    """A protobuf message: field numbers, and numbers or bytes (encoding: protobuf.dev, wire types 0, 1, 2, 5)."""
    at, found = 0, Fields()
    while at < len(data):
        key, at = _varint(data, at)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 0:
            value, at = _varint(data, at)
            found.append((key >> 3, value))
            continue
        if key & 7 == 2:
            size, at = _varint(data, at)
        elif not size:
            raise BadInputError("A checkpoint image is damaged", f"wire type {key & 7}")
        if at + size > len(data):
            raise BadInputError("A checkpoint image is damaged", "a field is cut off")
        found.append((key >> 3, data[at : at + size]))
        at += size
    return found


def _numbers(data: bytes) -> dict[int, int]:
    return {field: value for field, value in _fields(data) if isinstance(value, int)}


def _pagemap(path: Path) -> tuple[int, tuple[Entry, ...]]:
    """Number of the file with the pages, and the entries."""
    records = _records(path, _PAGEMAP)
    head = next(records, None)
    if head is None:
        raise BadInputError("A checkpoint image is cut off", str(path))
    entries = []
    for record in records:
        numbers = _numbers(record)  # vaddr, number of pages in older images, in_parent, flags, number of pages
        flags = numbers.get(4, _IN_PARENT if numbers.get(3) else _PRESENT)
        entries.append(Entry(numbers.get(1, 0), numbers.get(5, 0) or numbers.get(2, 0), flags))
    if any(one.end > two.start for one, two in pairwise(entries)):
        raise BadInputError("A checkpoint image is damaged", f"{path}: its entries are not in order")
    return _numbers(head).get(1, 0), tuple(entries)


def _regions(path: Path) -> tuple[tuple[int, int], ...]:
    """The mappings that are filled when touched: criu registers each of them (vma_entry_can_be_lazy), whatever it has.

    Fewer than criu would take: stacks that grow are left to it, and what is small.
    """
    found = []
    for record in _records(path, _MM):
        for field, value in _fields(record):
            if field != _MM_VMAS or isinstance(value, int):
                continue
            vma = _numbers(value)
            start, end, flags, status, advice = (vma.get(number, 0) for number in (1, 2, 6, 7, 9))
            if advice & _WIPE_ON_FORK:  # a process that is forked meanwhile must find zeros
                continue
            wanted, unwanted = _MAP_PRIVATE | _MAP_ANONYMOUS, _MAP_LOCKED | _MAP_HUGETLB | _MAP_GROWSDOWN
            plain = status & _REGULAR and status & _ANON_PRIVATE and not status & (_VSYSCALL | _VDSO | _VVAR)
            if plain and flags & wanted == wanted and not flags & unwanted and end - start >= LEAST:
                found.append((start, end))
    return tuple(sorted(found))


def _extents(directory: Path, name: str) -> list[Extent]:
    """Every page of a pagemap: where the newest round that has it keeps it."""
    path = directory / name
    number, entries = _pagemap(path)
    parent: list[Extent] = []
    if any(not each.flags & _PRESENT and each.flags & _IN_PARENT for each in entries):
        parent = _extents(directory / PARENT, name)
    pages, offset = directory / f"pages-{number}.img", 0
    found: list[Extent] = []
    for each in entries:
        if each.flags & _PRESENT:
            _append(found, Extent(each.start, each.end, pages, offset))
            offset += each.end - each.start
        elif each.flags & _IN_PARENT:
            covered = 0
            for part in _clip(parent, ((each.start, each.end),)):
                _append(found, part)
                covered += part.end - part.start
            if covered != each.end - each.start:
                why = f"{path}: of {each.pages} pages from {each.start:#x} on, its parent lacks some"
                raise BadInputError("A checkpoint image is damaged", why)
    return found


def _append(found: list[Extent], new: Extent) -> None:
    last = found[-1] if found else None
    if last and (last.end, last.file, last.offset + last.end - last.start) == (new.start, new.file, new.offset):
        found[-1] = Extent(last.start, new.end, last.file, last.offset)
    else:
        found.append(new)


def _clip(extents: Sequence[Extent], regions: Sequence[tuple[int, int]]) -> Iterator[Extent]:
    """What of extents in order lies in regions in order; none crosses the border of a region."""
    starts = [each.start for each in extents]
    for start, end in regions:
        for each in extents[max(0, bisect_right(starts, start) - 1) :]:
            if each.start >= end:
                break
            low, high = max(each.start, start), min(each.end, end)
            if low < high:
                yield Extent(low, high, each.file, each.offset + low - each.start)


def _marked(path: Path, regions: Sequence[tuple[int, int]]) -> bytes:
    """The same pagemap with exactly the pages in `regions` marked lazy."""
    number, entries = _pagemap(path)
    borders = sorted({border for region in regions for border in region})
    parts = [_MAGIC.pack(_COMMON, _PAGEMAP), _record((1, number))]
    for each in entries:
        cuts = [each.start, *(border for border in borders if each.start < border < each.end), each.end]
        for start, end in pairwise(cuts):
            lazy = any(low <= start < high for low, high in regions)
            flags = each.flags | _LAZY if lazy else each.flags & ~_LAZY
            parts.append(_record((1, start), (2, 0), (4, flags), (5, (end - start) // PAGE)))
    return b"".join(parts)


def _record(*numbers: tuple[int, int]) -> bytes:
    data = bytearray()
    for field, number in numbers:
        data.append(field << 3)
        left = number
        while left > 0x7F:
            data.append(left & 0x7F | 0x80)
            left >>= 7
        data.append(left)
    return _SIZE.pack(len(data)) + bytes(data)

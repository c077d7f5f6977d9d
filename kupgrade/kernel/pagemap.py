"""How much a process has written to since somebody asked last: soft-dirty bits of its page table.

Source: Documentation/admin-guide/mm/soft-dirty.rst, pagemap.rst: 8 bytes a page, bit 55 is soft-dirty. criu clears the
bits at each pre-dump (clear_refs).
"""

from __future__ import annotations

import mmap
import os
from array import array
from pathlib import Path

from kupgrade.kernel.libc import read_text, reported

SOFT_DIRTY = 1 << 55
ENTRY = 8  # bytes
CHUNK = 1 << 16  # entries in one read
SKIPPED = ("[vvar", "[vdso", "[vsyscall")


def soft_dirty(pid: int, root: Path = Path("/")) -> int:
    """Bytes in pages of private writable memory that were written to. Raises KernelError."""
    folder = root / "proc" / str(pid)
    dirty = 0
    with reported("open", folder / "pagemap"):
        fd = os.open(folder / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for line in filter(None, read_text(folder / "maps").split("\n")):  # names have other ends of lines
            words = line.split(maxsplit=5)
            if words[1][1] != "w" or words[1][3] != "p" or (len(words) > 5 and words[5].startswith(SKIPPED)):
                continue
            start, end = (int(part, 16) // mmap.PAGESIZE for part in words[0].split("-"))
            dirty += _count(fd, start, end, folder)
    finally:
        os.close(fd)
    return dirty * mmap.PAGESIZE


def _count(fd: int, start: int, end: int, folder: Path) -> int:
    found = 0
    for page in range(start, end, CHUNK):
        with reported("read", folder / "pagemap"):
            data = os.pread(fd, min(CHUNK, end - page) * ENTRY, page * ENTRY)
        entries = array("Q")
        entries.frombytes(data[: len(data) // ENTRY * ENTRY])
        found += sum(1 for entry in entries if entry & SOFT_DIRTY)
    return found

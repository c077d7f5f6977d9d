"""Identity page tables of four levels for the moment of entry, as bytes.

The 64-bit boot protocol wants the kernel, the zero page and the command line mapped where they are; the loop in which
parked CPUs wait needs these and the low 4 GiB (the spawned kernel's wake-up code lies below 1 MiB).

Source: Intel SDM vol. 3A, section 4.5.
"""

from __future__ import annotations

import struct

from kupgrade.errors import BadInputError
from kupgrade.model.machine import MemoryRange

PAGE = 4096
GIB = 1 << 30
ENTRIES = 512
LOW = 4  # GiB that are always mapped
ADDRESS_LIMIT = 1 << 46  # MAX_PHYSMEM_BITS of Linux with four levels

_TABLE = 0b11  # present, writable
_LARGE = 0b1000_0011  # present, writable, page size


def identity(base: int, mapped: MemoryRange, limit: int, *, gib_pages: bool = False) -> bytes:
    """Tables, to be put at `base` and entered with CR3 = `base`, that map the low 4 GiB and `mapped` to themselves.

    Pages are of 2 MiB; with `gib_pages` (CPU flag pdpe1gb) of 1 GiB above 4 GiB, where no device memory of another
    caching type shares the page. Raises BadInputError when they are longer than `limit` bytes or out of reach.
    """
    if base % PAGE or mapped.end > ADDRESS_LIMIT or base + limit > ADDRESS_LIMIT:
        raise BadInputError(f"{mapped} cannot be mapped by page tables at {base:#x}")
    gibs = sorted(set(range(LOW)) | set(range(mapped.start // GIB, (mapped.end - 1) // GIB + 1)))
    tops = sorted({gib // ENTRIES for gib in gibs})
    directories = [gib for gib in gibs if not gib_pages or gib < LOW]
    pages = 1 + len(tops) + len(directories)
    if pages * PAGE > limit:
        raise BadInputError("The page tables do not fit into their place", f"{pages * PAGE} of {limit} bytes")
    whole = bytearray(pages * PAGE)

    def entry(page: int, index: int, value: int) -> None:
        struct.pack_into("<Q", whole, page * PAGE + index * 8, value)

    for number, top in enumerate(tops):
        entry(0, top, (base + (1 + number) * PAGE) | _TABLE)
    for gib in gibs:
        upper, index = 1 + tops.index(gib // ENTRIES), gib % ENTRIES
        if gib_pages and gib >= LOW:
            entry(upper, index, gib * GIB | _LARGE)
            continue
        page = 1 + len(tops) + directories.index(gib)
        entry(upper, index, (base + page * PAGE) | _TABLE)
        leaves = (gib * GIB + (number << 21) | _LARGE for number in range(ENTRIES))
        struct.pack_into(f"<{ENTRIES}Q", whole, page * PAGE, *leaves)
    return bytes(whole)


def translate(tables: bytes, base: int, address: int) -> int | None:
    """What the CPU would find for a virtual `address`; None: a page fault."""
    table = base
    for shift in (39, 30, 21):
        offset = table - base + 8 * (address >> shift & (ENTRIES - 1))
        if not 0 <= offset <= len(tables) - 8:
            return None
        value: int = struct.unpack_from("<Q", tables, offset)[0]
        if not value & 1:
            return None
        if value & 0x80:
            frame = value & (1 << 52) - (1 << shift)
            return frame | address & (1 << shift) - 1
        table = value & (1 << 52) - PAGE
    return None  # tables of 4 KiB pages are not made here

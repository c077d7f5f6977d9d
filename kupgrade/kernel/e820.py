"""The memory map as the boot protocol passes it on.

Source: arch/x86/include/uapi/asm/setup_data.h (struct boot_e820_entry).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from kupgrade.errors import BadInputError
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import MapEntry, MemoryType

MAX_ENTRIES = 128  # E820_MAX_ENTRIES_ZEROPAGE
ENTRY = struct.Struct("<QQI")


def encode(entries: Sequence[MapEntry]) -> bytes:
    """20 bytes for each entry. Raises BadInputError when they are not in order, overlap, are none or too many.

    Linux would sort them and resolve overlaps by its own rules; a map that needs that is not the one that was meant.
    """
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise BadInputError("The memory map cannot be passed on", f"{len(entries)} entries, 1 to {MAX_ENTRIES} fit")
    for before, after in pairwise(entries):
        if after.range.start < before.range.end:
            why = f"{before} and {after} overlap or are not in order"
            raise BadInputError("The memory map cannot be passed on", why)
    return b"".join(ENTRY.pack(each.range.start, each.range.size, each.type) for each in entries)


def decode(data: bytes) -> tuple[MapEntry, ...]:
    """Read what `encode` wrote. Raises BadInputError for torn data, unknown types and impossible ranges."""
    if len(data) % ENTRY.size:
        raise BadInputError("The memory map is truncated", f"{len(data)} bytes")
    found = []
    for start, size, kind in ENTRY.iter_unpack(data):
        try:
            found.append(MapEntry(MemoryRange(start, size), MemoryType(kind)))
        except ValueError as error:
            raise BadInputError("The memory map is damaged", f"type {kind} at {start:#x}") from error
    return tuple(found)

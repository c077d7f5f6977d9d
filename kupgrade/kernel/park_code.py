"""The loop in which a spawned kernel's CPUs wait: machine code of kupgrade/kmod/park.S, and its layout.

Source: ACPI 6.6, 5.2.12.19 (Multiprocessor Wakeup Structure, version 1). A test assembles park.S and compares.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kupgrade.errors import BadInputError
from kupgrade.model.machine import MemoryRange

PAGE = 0x1000

# The mailbox is the page before the code's; `<HxxIQ`: command, APIC id, wake-up vector.
MAILBOX_OFFSET = -PAGE
MAILBOX = struct.Struct("<H2xIQ")
COMMAND_NONE = 0
COMMAND_WAKEUP = 1
COMMAND_TEST = 2

# In the code's page: page table, address of the slots, their number
PARAMETERS_OFFSET = 0x200
PARAMETERS = struct.Struct("<QQI4x")

# One slot a CPU: its APIC id; 1 while it waits in the loop
SLOT = struct.Struct("<II56x")
SLOT_PARKED_OFFSET = 4

CODE = bytes.fromhex(
    "fafc4c8d3df7ffffff488b05f00100000f22d831c00fa283f80b7210b80b00000031c90fa24189d685db750db8010000"
    "000fa2c1eb184189de4c8b2dc80100008b0dca01000083e901720c4539750074094983c540ebef4531ed4d85ed740841"
    "c7450401000000f390410fb78700f0ffff85c074f24539b704f0ffff75e983f801741183f80275df6641c78700f0ffff"
    "0000ebd3498b8708f0ffff4d85ed740841c74504000000006641c78700f0ffff0000ffe0"
)


def park_page(cr3: int, slots: int, count: int) -> bytes:
    """The page of code for `count` slots at physical address `slots`; `cr3` maps all of it to itself.

    CPUs enter at its first byte, the reset vector of the MADT.
    """
    page = bytearray(CODE.ljust(PAGE, b"\xcc"))
    PARAMETERS.pack_into(page, PARAMETERS_OFFSET, cr3, slots, count)
    return bytes(page)


def slot_table(apic_ids: Sequence[int]) -> bytes:
    """A slot for each CPU that may ever wait, none of them waiting; a CPU without one waits unseen."""
    return b"".join(SLOT.pack(apic_id, 0) for apic_id in apic_ids)


def wake_up(apic_id: int, vector: int) -> bytes:
    """The mailbox that makes a waiting CPU go on at `vector`.

    Write all but the command (the first two bytes) first. The CPU sets the command back to 0 when it goes.
    """
    return MAILBOX.pack(COMMAND_WAKEUP, apic_id, vector)


def slots_of(page: bytes | memoryview) -> MemoryRange:
    """Where the slots lie that belong to a page of the code. Raises BadInputError when it has none."""
    _, address, count = PARAMETERS.unpack_from(page, PARAMETERS_OFFSET)
    if bytes(page[: len(CODE)]) != CODE or not count:
        raise BadInputError("There is no park loop", "its code or its slots are missing")
    return MemoryRange(address, count * SLOT.size)


def waiting(table: bytes | memoryview) -> tuple[int, ...]:
    """The APIC IDs of the CPUs that wait, out of the table of slots."""
    return tuple(apic_id for apic_id, waits in SLOT.iter_unpack(bytes(table)) if waits)

"""Words for physical memory: what a range is to a kernel, and the blocks it can be taken offline in."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kupgrade.model.machine import MemoryRange


class MemoryType(enum.IntEnum):
    """What a range of a memory map is (arch/x86/include/asm/e820/types.h; ACPI 6.5 table 15.4)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5
    PMEM = 7
    PRAM = 12  # legacy persistent memory: becomes /dev/pmemN


@dataclass(frozen=True, slots=True, order=True)
class MapEntry:
    """One entry of the memory map that a kernel is given."""

    range: MemoryRange
    type: MemoryType

    def __str__(self) -> str:
        return f"{self.range} {self.type.name}"


class BlockState(enum.Enum):
    """A memory block's `state` in sysfs; UNKNOWN when it could not be read."""

    ONLINE = "online"
    OFFLINE = "offline"
    GOING_OFFLINE = "going-offline"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True)
class MemoryBlock:
    """One block of /sys/devices/system/memory; `number` times the block size is its address.

    `removable`: whether its pages look movable (None: the kernel does not tell). `zones`: as in valid_zones, the
    zone it is in first; empty when unknown. `node`: its NUMA node, None when unknown.
    """

    number: int
    state: BlockState
    removable: bool | None = None
    zones: tuple[str, ...] = ()
    node: int | None = None

    @property
    def movable(self) -> bool:
        """Whether it is in ZONE_MOVABLE, where only pages that can be moved away are put."""
        return self.zones[:1] == ("Movable",)

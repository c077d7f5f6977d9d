"""Words for a kernel that was started beside this one: what it was given, where it lives, how to find it again.

All of it goes into the journal before the effect: a process that was killed finds CPUs, memory and kernel again by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.errors import BadInputError
from kupgrade.model.ids import UpgradeId
from kupgrade.model.machine import CpuSet, MemoryRange

BOX_PARAMETER = "kupgrade.box"
WINDOW_PARAMETER = "kupgrade.window"
LOW_PARAMETER = "kupgrade.low"
MODULE = "kspawn"  # whose parameters the spawned kernel's command line gives, as MODULE.NAME=VALUE


@dataclass(frozen=True, slots=True)
class GivenCpu:
    """A CPU to be given away: its number here, its APIC ID, and whether this kernel ran on it before."""

    number: int
    apic_id: int
    online: bool


@dataclass(frozen=True, slots=True)
class CpusBefore:
    """The CPUs of a new kernel as they were, the one that boots it first.

    `others`: APIC IDs of the rest, offline ones too.
    """

    given: tuple[GivenCpu, ...]
    others: tuple[int, ...] = ()

    @property
    def numbers(self) -> CpuSet:
        """Which they are here."""
        return CpuSet(tuple(each.number for each in self.given))

    @property
    def apic_ids(self) -> tuple[int, ...]:
        """The given ones' APIC IDs, in their order."""
        return tuple(each.apic_id for each in self.given)


@dataclass(frozen=True, slots=True)
class BlockBefore:
    """A memory block that was online, and the zone it was in (as in valid_zones; empty: not known)."""

    number: int
    zone: str = ""


@dataclass(frozen=True, slots=True)
class MemoryBefore:
    """The memory blocks that were online, each of `block_size` bytes."""

    block_size: int
    online: tuple[BlockBefore, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """A kernel to be started. `kernel`, `initrd`: paths. `cmdline`: the host's own, from which its own is made.

    `root_image`, `window`: bytes. `generation`: 1 for the first kernel that is started beside one that the firmware
    started. `serial`: the number of the serial port (2 is ttyS1) that is its own, 0 for none. `extra`: more words for
    its command line.
    """

    upgrade: UpgradeId
    epoch: int
    generation: int
    kernel: str
    initrd: str
    cmdline: str
    memory: MemoryRange
    window: int
    root_image: int = 0
    serial: int = 0
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """A spawned kernel, or one that is about to be: enough to watch, fence and wipe it.

    `apic_ids`: its CPUs, the one that boots first. `later`: those it may be given afterwards. `bsp`: the APIC ID of
    the machine's bootstrap processor. `registers`: its firmware registers. Addresses are physical.
    """

    upgrade: UpgradeId
    epoch: int
    generation: int
    box: MemoryRange
    low: MemoryRange
    window: MemoryRange
    root_image: MemoryRange | None
    registers: int
    park: int
    page_tables: int
    apic_ids: tuple[int, ...]
    later: tuple[int, ...]
    bsp: int


@dataclass(frozen=True, slots=True)
class Standby:
    """A spawned kernel that answered: which boot of which release, seconds from its start to its hello."""

    boot_id: str
    release: str
    seconds: float


def range_value(of: MemoryRange) -> str:
    """A range as a kernel parameter's value: BASE:SIZE, both hexadecimal."""
    return f"{of.start:#x}:{of.size:#x}"


def parse_range(text: str) -> MemoryRange:
    """Read BASE:SIZE. Raises BadInputError."""
    start, _, size = text.partition(":")
    try:
        return MemoryRange(int(start, 16), int(size, 16))
    except ValueError as error:
        raise BadInputError(f"{text!r:.60} is not a range of memory", "expected BASE:SIZE") from error

"""Words for a machine's parts: sets of CPUs, ranges of memory, PCI addresses, NUMA nodes, the topology of cores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kupgrade.errors import BadInputError

CPU_LIMIT = 1 << 16  # NR_CPUS is at most 8192 on x86 (arch/x86/Kconfig); this only bounds hostile text
ADDRESS_LIMIT = 1 << 52  # MAXPHYADDR of the architecture (Intel SDM vol. 3A, 4.1.4)

_GROUP = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6})(?::([0-9]{1,6})/([0-9]{1,6}))?)?")
_PCI = re.compile(r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")


@dataclass(frozen=True, slots=True, order=True)
class CpuSet:
    """A set of logical CPU numbers, kept sorted and without doubles; may be empty."""

    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for number in self.numbers:
            if not 0 <= number < CPU_LIMIT:
                raise BadInputError(f"{number} is not a CPU number")
        object.__setattr__(self, "numbers", tuple(sorted(set(self.numbers))))

    @classmethod
    def of(cls, *numbers: int) -> CpuSet:
        """The set of these CPUs."""
        return cls(numbers)

    @classmethod
    def parse(cls, text: str) -> CpuSet:
        """Read the kernel's list format: 0-3,8,10-15:1/2 (lib/bitmap-str.c, bitmap_parselist). Raises BadInputError.

        Empty text, and "(null)" as old kernels print for an unset nohz_full=, are the empty set.
        """
        text = text.strip()
        if text in ("", "(null)"):
            return cls()
        found: set[int] = set()
        for word in text.split(","):
            match = _GROUP.fullmatch(word.strip())
            if not match:
                raise BadInputError(f"{word!r:.40} is not a list of CPUs", "expected something like 0-3,8")
            first, last = int(match[1]), int(match[2] or match[1])
            used, group = int(match[3] or 1), int(match[4] or 1)
            if last < first or last >= CPU_LIMIT or group == 0 or not 0 < used <= group:
                raise BadInputError(f"{word!r:.40} is not a list of CPUs", "its bounds make no sense")
            found.update(cpu for cpu in range(first, last + 1) if (cpu - first) % group < used)
        return cls(tuple(found))

    def __str__(self) -> str:
        """The kernel's list format, runs joined: 0-3,8."""
        runs: list[list[int]] = []
        for number in self.numbers:
            if runs and runs[-1][1] == number - 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, number: object) -> bool:
        return number in self.numbers

    def __or__(self, other: CpuSet) -> CpuSet:
        return CpuSet(self.numbers + other.numbers)

    def __and__(self, other: CpuSet) -> CpuSet:
        return CpuSet(tuple(set(self.numbers) & set(other.numbers)))

    def __sub__(self, other: CpuSet) -> CpuSet:
        return CpuSet(tuple(set(self.numbers) - set(other.numbers)))

    def issubset(self, other: CpuSet) -> bool:
        """Whether every CPU is in `other` too."""
        return set(self.numbers) <= set(other.numbers)


@dataclass(frozen=True, slots=True, order=True)
class MemoryRange:
    """Physical memory from `start` on, `size` bytes, at least one."""

    start: int
    size: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.size < 1 or self.start + self.size > ADDRESS_LIMIT:
            raise BadInputError(f"{self.size:#x} bytes at {self.start:#x} are not a range of physical memory")

    @classmethod
    def between(cls, start: int, end: int) -> MemoryRange:
        """From `start` up to, not including, `end`."""
        return cls(start, end - start)

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size

    def __str__(self) -> str:
        """As /proc/iomem prints it: both ends included."""
        return f"{self.start:#x}-{self.end - 1:#x}"

    def __contains__(self, other: object) -> bool:
        """Whether an address, or a range as a whole, lies inside."""
        match other:
            case int():
                return self.start <= other < self.end
            case MemoryRange():
                return self.start <= other.start and other.end <= self.end
        return False

    def overlaps(self, other: MemoryRange) -> bool:
        """Whether they share a byte."""
        return self.start < other.end and other.start < self.end

    def without(self, others: Iterable[MemoryRange]) -> tuple[MemoryRange, ...]:
        """What of it no other range covers, in address order."""
        rest, at = [], self.start
        for other in sorted(others):
            if other.start > at and at < self.end:
                rest.append(MemoryRange.between(at, min(other.start, self.end)))
            at = max(at, other.end)
        if at < self.end:
            rest.append(MemoryRange.between(at, self.end))
        return tuple(rest)


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """A PCI function by domain (segment; VMD numbers its own from 0x10000 on), bus, device and function."""

    domain: int
    bus: int
    device: int
    function: int

    def __post_init__(self) -> None:
        fits = 0 <= self.domain <= 0xFFFFFFFF and 0 <= self.bus <= 255 and 0 <= self.device < 32
        if not fits or not 0 <= self.function < 8:
            raise BadInputError(f"{self.domain:x}:{self.bus:x}:{self.device:x}.{self.function} is not a PCI address")

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """Read 0000:00:1f.2, as sysfs names functions. Raises BadInputError."""
        match = _PCI.fullmatch(text)
        if not match:
            raise BadInputError(f"{text!r:.40} is not a PCI address", "expected something like 0000:00:1f.2")
        return cls(int(match[1], 16), int(match[2], 16), int(match[3], 16), int(match[4]))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


@dataclass(frozen=True, slots=True)
class NumaNode:
    """A NUMA node: its number, its online CPUs, its memory in bytes (None: unknown)."""

    number: int
    cpus: CpuSet
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Cpu:
    """One logical CPU. What the kernel forgets about an offline CPU is None: unknown, not "none".

    `siblings`: the online CPUs of its core, itself included. `apic_id`: the (x2)APIC ID.
    """

    number: int
    online: bool
    apic_id: int | None = None
    core: int | None = None
    package: int | None = None
    node: int | None = None
    siblings: CpuSet | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """The present CPUs by number, and the NUMA nodes. Raises BadInputError for what contradicts itself.

    CPU 0 is the real boot-strap processor (BSP) in a kernel that the firmware started.
    """

    cpus: tuple[Cpu, ...]
    nodes: tuple[NumaNode, ...] = ()

    def __post_init__(self) -> None:
        numbers = [cpu.number for cpu in self.cpus]
        if numbers != sorted(set(numbers)):
            raise BadInputError("The CPUs of a topology are not in order", f"numbers {numbers}"[:200])
        known = [cpu.apic_id for cpu in self.cpus if cpu.apic_id is not None]
        if len(known) != len(set(known)):
            raise BadInputError("Two CPUs have the same APIC ID", f"APIC IDs {sorted(known)}"[:200])
        by_number = {cpu.number: cpu for cpu in self.cpus}
        for cpu in self.cpus:
            for other in cpu.siblings or ():
                if other not in by_number or by_number[other].siblings != cpu.siblings:
                    raise BadInputError(f"CPUs {cpu.number} and {other} disagree on their core")
            if cpu.siblings is not None and cpu.number not in cpu.siblings:
                raise BadInputError(f"CPU {cpu.number} is not on its own core")

    def cpu(self, number: int) -> Cpu:
        """One CPU. Raises BadInputError when there is none with that number."""
        for each in self.cpus:
            if each.number == number:
                return each
        raise BadInputError(f"There is no CPU {number}", f"present are {self.present}")

    def with_apic_id(self, apic_id: int) -> Cpu | None:
        """The CPU with this APIC ID; None when there is none, or when it is an offline one whose ID is unknown."""
        return next((each for each in self.cpus if each.apic_id == apic_id), None)

    @property
    def present(self) -> CpuSet:
        """Every CPU of it."""
        return CpuSet(tuple(cpu.number for cpu in self.cpus))

    @property
    def online(self) -> CpuSet:
        """The CPUs that this kernel runs on."""
        return CpuSet(tuple(cpu.number for cpu in self.cpus if cpu.online))

    @property
    def cores(self) -> tuple[CpuSet, ...]:
        """The online CPUs, core by core; a CPU of unknown core counts as a core of its own."""
        alone = ((cpu, CpuSet.of(cpu.number)) for cpu in self.cpus if cpu.online)
        return tuple(sorted({cpu.siblings or single for cpu, single in alone}))

"""Physical memory ranges, memmap= and legacy persistent memory (pmem).

Sources: kernel/resource.c (/proc/iomem), Documentation/admin-guide/kernel-parameters.rst (memmap=),
drivers/nvdimm (/sys/block/pmemN).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel.libc import read_text
from kupgrade.model.kernel import CommandLine

LEGACY_PMEM = "Persistent Memory (legacy)"  # E820_TYPE_PRAM, what memmap=SIZE!ADDR makes
SYSTEM_RAM = "System RAM"

SECTOR = 512  # /sys/block/*/size counts these whatever the device's block size

_SIZES = {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_NUMBER = r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMGTPEkmgtpe]?)"
_MEMMAP = re.compile(_NUMBER + r"([@#$!])" + _NUMBER)


@dataclass(frozen=True, slots=True)
class IoRange:
    """One resource of /proc/iomem: physical addresses, `end` included; `depth` 0 is outermost."""

    start: int
    end: int
    name: str
    depth: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start + 1


class MemmapKind(enum.Enum):
    """What memmap= does with a range."""

    RAM = "@"
    ACPI = "#"
    RESERVED = "$"
    PMEM = "!"


@dataclass(frozen=True, slots=True)
class Memmap:
    """One range of memmap=SIZE!ADDR, in bytes."""

    kind: MemmapKind
    start: int
    size: int

    def __str__(self) -> str:
        return f"{_short(self.size)}{self.kind.value}{_short(self.start)}"


@dataclass(frozen=True, slots=True)
class Pmem:
    """A pmem block device. `size` in bytes; `mode`: of its namespace, as in sysfs (raw, memory, ...).

    `start`: physical address, None when the kernel does not tell.
    """

    name: str
    size: int
    mode: str
    dax: bool
    start: int | None


def parse_iomem(text: str) -> tuple[IoRange, ...]:
    """Every resource, in address order. Raises BadInputError for lines of another shape."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"( *)([0-9a-f]+)-([0-9a-f]+) : (.*)", line)
        if not match:
            raise BadInputError("A line of /proc/iomem cannot be read", line[:80])
        found.append(IoRange(int(match[2], 16), int(match[3], 16), match[4], len(match[1]) // 2))
    return tuple(found)


def iomem(root: Path = Path("/")) -> tuple[IoRange, ...] | None:
    """/proc/iomem; None when the kernel hides the addresses (all zero without CAP_SYS_ADMIN)."""
    found = parse_iomem(read_text(root / "proc/iomem"))
    return found if any(each.end for each in found) else None


def legacy_pmem(ranges: Iterable[IoRange]) -> tuple[IoRange, ...]:
    """The ranges that were set aside as legacy persistent memory."""
    return tuple(each for each in ranges if each.name == LEGACY_PMEM)


def parse_size(number: str, suffix: str = "") -> int:
    """A number as memparse() takes it: decimal, 0x hex or 0 octal, with K, M, G, T, P or E."""
    base = 16 if number[:2] in ("0x", "0X") else 8 if number.startswith("0") and number != "0" else 10
    try:
        return int(number, base) << _SIZES.get(suffix.upper(), 0)
    except ValueError as error:
        raise BadInputError(f"{number!r:.40} is not a number of bytes") from error


def _short(size: int) -> str:
    for suffix, shift in reversed(_SIZES.items()):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{suffix}"
    return f"{size:#x}"


def parse_memmap(cmdline: CommandLine) -> tuple[Memmap, ...]:
    """Every range given with memmap=; words without a range (exactmap, nn%..., nn alone) are left out."""
    found = []
    for value in cmdline.values("memmap"):
        for word in (value or "").split(","):
            if match := _MEMMAP.fullmatch(word):
                size, start = parse_size(match[1], match[2]), parse_size(match[4], match[5])
                found.append(Memmap(MemmapKind(match[3]), start, size))
    return tuple(found)


def _optional(path: Path) -> str:
    try:
        return read_text(path).strip()
    except KernelError:
        return ""  # not every driver has every attribute, and `resource` is root's alone


def pmem_devices(root: Path = Path("/")) -> tuple[Pmem, ...]:
    """Every pmem block device, by name; none when there is no driver."""
    found = []
    for folder in sorted((root / "sys/block").glob("pmem*")):
        sectors, start = _optional(folder / "size"), _optional(folder / "device/resource")
        found.append(
            Pmem(
                name=folder.name,
                size=int(sectors or "0") * SECTOR,
                mode=_optional(folder / "device/mode"),
                dax=_optional(folder / "queue/dax") == "1",
                start=int(start, 0) if start else None,
            )
        )
    return tuple(found)

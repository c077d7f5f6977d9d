"""The layout of the box: the set-aside memory in which a spawned kernel lives, from the mailbox to the window.

From bottom to top: a control area (mailbox, park code, firmware registers, zero page, command line, ACPI tables, page
tables), RAM with the kernel near its bottom and the initrd at its top, the root image, the shared window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kupgrade.errors import BadInputError
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import MapEntry, MemoryType
from kupgrade.model.plan import Refusal

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB
SMALL_ALIGNMENT = 2 * MIB

# RAM, root image and window begin on such boundaries: the spawned kernel can only take whole blocks of RAM offline
# when it is the old kernel in its turn, and persistent memory shares no block with RAM.
SECTION = 128 * MIB
KERNEL_OFFSET = 16 * MIB  # as firmware boots load it; leaves the start of RAM for the kernel's early allocations
DEFAULT_SPARE = 192 * MIB
ADDRESS_LIMIT = 1 << 46  # what Linux with four levels of page tables can reach
ENTRY_64 = 0x200  # of a bzImage, see Documentation/arch/x86/boot.rst

# Offsets in the control area. The park code finds the mailbox one page below itself.
MAILBOX, PARK, REGISTERS, ZERO_PAGE, SETUP_DATA, CMDLINE, ACPI, PAGE_TABLES = (
    *(0x0, 0x1000, 0x8000, 0x9000, 0xA000, 0xB000),
    *(0x10000, 0x40000),
)

# Below 640 KiB each kernel needs a stretch of its own for real-mode code: at most 192 KiB. The first two were seen to
# work; the next generation takes the one that its parent does not use. A kernel that the firmware started has its own
# real-mode code at the top of what is RAM, mostly above both: 24 to 32 KiB, and what its place is rounded by.
LOW_SIZE = 0x30000
REAL_MODE = 0xC000
LOW_SLICES = (MemoryRange.between(0x20000, 0x60000), MemoryRange.between(0x60000, 0x90000))
LOW_FIRST, LOW_END = 0x11000, 0x9F000  # below: BIOS data, kspawn's trampoline; above: EBDA


@dataclass(frozen=True, slots=True)
class BoxNeeds:
    """What has to fit, in bytes. `init_size` and `alignment` are the kernel's; 0 for no initrd, no root image.

    `spare`: RAM that must be left besides kernel and initrd, or nothing would start.
    """

    init_size: int
    initrd: int
    root_image: int
    window: int
    alignment: int = SMALL_ALIGNMENT
    spare: int = DEFAULT_SPARE

    def __post_init__(self) -> None:
        power = self.alignment > 0 and self.alignment & self.alignment - 1 == 0
        if self.init_size < 1 or self.window < PAGE or min(self.initrd, self.root_image, self.spare) < 0 or not power:
            raise BadInputError("The sizes for a box make no sense", f"{self}")


@dataclass(frozen=True, slots=True)
class Box:
    """Where everything lies; physical addresses. `memory_map`: what the spawned kernel is told of memory."""

    whole: MemoryRange
    low: MemoryRange
    mailbox: int
    park: MemoryRange
    registers: int
    zero_page: int
    setup_data: MemoryRange
    cmdline: MemoryRange
    acpi: MemoryRange
    page_tables: MemoryRange
    ram: MemoryRange
    kernel: MemoryRange
    initrd: MemoryRange | None
    root_image: MemoryRange | None
    window: MemoryRange
    memory_map: tuple[MapEntry, ...]

    @property
    def entry(self) -> int:
        """The kernel's 64-bit entry point."""
        return self.kernel.start + ENTRY_64


def up(value: int, alignment: int) -> int:
    """The next multiple of `alignment`, or `value` itself."""
    return -(-value // alignment) * alignment


def down(value: int, alignment: int) -> int:
    """The last multiple of `alignment` that is not above `value`."""
    return value // alignment * alignment


def _control_size(whole: MemoryRange) -> int:
    """Bytes up to the RAM; page tables of 2 MiB pages for the box and the low 4 GiB are what varies."""
    first, last = whole.start // GIB, (whole.end - 1) // GIB
    gibs = 4 + last - first + 1
    tops = 1 + last // 512 - first // 512 + 1
    return up(PAGE_TABLES + (1 + tops + gibs) * PAGE, SMALL_ALIGNMENT)


def needed_size(needs: BoxNeeds) -> int:
    """Bytes, in whole sections, in which `layout` always finds room at a base that is a multiple of SECTION."""
    tail = up(needs.window, SECTION) + up(needs.root_image, SECTION)
    size = SECTION + tail
    while True:
        control = _control_size(MemoryRange(0, size)) + 2 * PAGE  # one table more of each kind across a boundary
        kernel = max(up(control, SMALL_ALIGNMENT), KERNEL_OFFSET) + needs.alignment
        wanted = up(kernel + needs.init_size + up(needs.initrd, PAGE) + needs.spare, SECTION) + tail
        if wanted <= size:
            return size
        size = wanted


def low_ram(usable: Sequence[MemoryRange]) -> tuple[MemoryRange, ...]:
    """What of `usable` can be a kernel's real-mode memory, adjoining ranges as one."""
    window = MemoryRange.between(LOW_FIRST, LOW_END)
    return window.without(window.without(usable))


def real_mode(usable: Sequence[MemoryRange]) -> tuple[MemoryRange, ...]:
    """Where the real-mode code is of a kernel that found `usable`: it takes the highest place."""
    large = [each for each in low_ram(usable) if each.size >= REAL_MODE]
    return tuple(MemoryRange.between(each.end - REAL_MODE, each.end) for each in large[-1:])


def low_slice(usable: Sequence[MemoryRange], in_use: Sequence[MemoryRange]) -> MemoryRange | Refusal:
    """A stretch below 640 KiB for a new kernel's real-mode code.

    `usable`: RAM below 1 MiB as the firmware told the first kernel. `in_use`: slices of kernels that still live, and
    pages below 1 MiB that the running kernel or its modules really use.
    """
    window = MemoryRange.between(LOW_FIRST, LOW_END)
    holes = window.without(usable)
    free = window.without((*in_use, *holes))
    for candidate in LOW_SLICES:
        if any(candidate in stretch for stretch in free):
            return candidate
    for stretch in free:
        start = up(stretch.start, PAGE)
        if start + LOW_SIZE <= stretch.end:
            return MemoryRange(start, LOW_SIZE)
    return Refusal(
        "low-memory",
        f"no {LOW_SIZE // KIB} KiB below 640 KiB are free; in use: {', '.join(map(str, in_use)) or 'nothing'}; "
        f"not RAM: {', '.join(map(str, holes)) or 'nothing'}",
        "Finish the kernel that was started before, or reboot this machine once",
    )


def _mib(size: int) -> str:
    return f"{-(-size // MIB)} MiB"


def _too_small(whole: MemoryRange, needs: BoxNeeds) -> Refusal:
    return Refusal(
        "box-size",
        f"the set-aside memory {whole} has {_mib(whole.size)}; kernel {_mib(needs.init_size)}, initrd "
        f"{_mib(needs.initrd)}, spare RAM {_mib(needs.spare)}, root image {_mib(needs.root_image)} and window "
        f"{_mib(needs.window)} need {_mib(needed_size(needs))} with their alignment",
        f"Set aside {_mib(needed_size(needs))}",
    )


def layout(
    whole: MemoryRange, needs: BoxNeeds, low: MemoryRange, reserved: Sequence[MemoryRange] = ()
) -> Box | Refusal:
    """Lay out the box. `reserved`: ranges elsewhere that the map must call reserved (PCI configuration space).

    Returns a Refusal that names the sizes when it does not fit. Raises BadInputError for a box that is not aligned to
    2 MiB, is out of reach, or overlaps `low` or `reserved`.
    """
    if whole.start % SMALL_ALIGNMENT or whole.size % SMALL_ALIGNMENT or whole.end > ADDRESS_LIMIT:
        raise BadInputError(f"{whole} cannot hold a kernel", "it must be aligned to 2 MiB and lie below 2^46")
    if whole.start < MIB:
        raise BadInputError(f"{whole} cannot hold a kernel", "it reaches below 1 MiB")
    ram_start = whole.start + _control_size(whole)
    window_start = down(whole.end - needs.window, SECTION)
    root_start = down(window_start - needs.root_image, SECTION)
    ram_end = root_start if needs.root_image else window_start
    initrd_start = down(ram_end - needs.initrd, PAGE)
    kernel = up(max(ram_start, whole.start + KERNEL_OFFSET), needs.alignment)
    if kernel + needs.init_size + needs.spare > initrd_start:
        return _too_small(whole, needs)

    def at(offset: int, end: int) -> MemoryRange:
        return MemoryRange.between(whole.start + offset, whole.start + end)

    ram = MemoryRange.between(ram_start, ram_end)
    acpi, window = at(ACPI, PAGE_TABLES), MemoryRange.between(window_start, whole.end)
    root = MemoryRange.between(root_start, window_start) if needs.root_image else None
    entries = [
        MapEntry(low, MemoryType.RAM),
        MapEntry(at(0, ACPI), MemoryType.RESERVED),
        MapEntry(acpi, MemoryType.ACPI),
        MapEntry(MemoryRange.between(acpi.end, ram.start), MemoryType.RESERVED),
        MapEntry(ram, MemoryType.RAM),
        *([MapEntry(root, MemoryType.PRAM)] if root else []),
        MapEntry(window, MemoryType.RESERVED),
        *(MapEntry(each, MemoryType.RESERVED) for each in reserved),
    ]
    entries.sort()
    for before, after in pairwise(entries):
        if before.range.overlaps(after.range):
            raise BadInputError("The memory map of the new kernel contradicts itself", f"{before} overlaps {after}")
    return Box(
        whole=whole,
        low=low,
        mailbox=whole.start + MAILBOX,
        park=at(PARK, REGISTERS),
        registers=whole.start + REGISTERS,
        zero_page=whole.start + ZERO_PAGE,
        setup_data=at(SETUP_DATA, CMDLINE),
        cmdline=at(CMDLINE, ACPI),
        acpi=acpi,
        page_tables=at(PAGE_TABLES, ram_start - whole.start),
        ram=ram,
        kernel=MemoryRange(kernel, needs.init_size),
        initrd=MemoryRange(initrd_start, needs.initrd) if needs.initrd else None,
        root_image=root,
        window=window,
        memory_map=tuple(entries),
    )

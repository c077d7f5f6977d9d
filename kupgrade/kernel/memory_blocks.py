"""Memory blocks: which there are, taking them offline and bringing them back; what is RAM, reserved or persistent.

Sources: Documentation/admin-guide/mm/memory-hotplug.rst, Documentation/ABI/testing/sysfs-devices-memory,
Documentation/ABI/testing/sysfs-firmware-memmap.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel import memory
from kupgrade.kernel.libc import read_text, reported, write_text
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import BlockState, MemoryBlock

BLOCKS = "sys/devices/system/memory"
FIRMWARE_MAP = "sys/firmware/memmap"

# What to write so that a block comes back into the zone it was in; by the first word of its valid_zones.
_ONLINE = {"Movable": "online_movable", "Normal": "online_kernel", "DMA32": "online_kernel", "DMA": "online_kernel"}


@dataclass(frozen=True, slots=True)
class PhysicalMap:
    """The outermost ranges of /proc/iomem, by what they are; ranges of other names are left out."""

    ram: tuple[MemoryRange, ...]
    reserved: tuple[MemoryRange, ...]
    persistent: tuple[MemoryRange, ...]


def block_size(root: Path = Path("/")) -> int:
    """Bytes in one block. Raises KernelError (ENOENT: no memory hotplug in this kernel) and BadInputError."""
    text = read_text(root / BLOCKS / "block_size_bytes").strip()
    try:
        size = int(text, 16)
    except ValueError as error:
        raise BadInputError("The size of a memory block cannot be read", repr(text[:40])) from error
    if size < 1 or size & size - 1:
        raise BadInputError("The size of a memory block makes no sense", f"{size:#x} bytes")
    return size


def _optional(path: Path) -> str:
    try:
        return read_text(path).strip()
    except KernelError:
        return ""  # not every kernel has every attribute


def _state(folder: Path) -> BlockState:
    try:
        return BlockState(_optional(folder / "state"))
    except ValueError:
        return BlockState.UNKNOWN


def _node(folder: Path) -> int | None:
    """The node that the block's folder links to; None for none, and for more than one."""
    found = [int(path.name[4:]) for path in folder.glob("node*") if re.fullmatch(r"node[0-9]{1,5}", path.name)]
    return found[0] if len(found) == 1 else None


def state(number: int, root: Path = Path("/")) -> BlockState:
    """Whether one block is online, and nothing else of it; UNKNOWN for one that is not there.

    Of a block that is being added this is all that may be read: valid_zones is there before the block's node is known,
    and reading it then is a null pointer dereference in the kernel (seen in Linux 6.12, drivers/base/memory.c).
    """
    return _state(root / BLOCKS / f"memory{number}")


def block(number: int, root: Path = Path("/")) -> MemoryBlock:
    """One block as it is now."""
    folder = root / BLOCKS / f"memory{number}"
    return MemoryBlock(
        number=number,
        state=_state(folder),
        removable={"0": False, "1": True}.get(_optional(folder / "removable")),
        zones=tuple(zone for zone in _optional(folder / "valid_zones").split() if zone != "none"),
        node=_node(folder),
    )


def blocks(root: Path = Path("/")) -> tuple[MemoryBlock, ...]:
    """Every present block, by number. Raises KernelError without memory hotplug.

    The kernel says of every block that it is removable; here those are not in which it lies itself, or what it keeps
    for a crash (resources within System RAM in /proc/iomem; physical KASLR puts them anywhere).
    """
    with reported("readdir", root / BLOCKS):
        names = [path.name for path in (root / BLOCKS).iterdir()]
    present = sorted(int(name[6:]) for name in names if re.fullmatch(r"memory[0-9]{1,9}", name))
    size, held = block_size(root), _held(root)
    found = [block(number, root) for number in present]
    fixed = {number for each in held for number in range(each.start // size, -(-each.end // size))}
    return tuple(replace(each, removable=False) if each.number in fixed else each for each in found)


def _held(root: Path) -> list[MemoryRange]:
    """What lies in RAM for good; nothing when the kernel hides the addresses."""
    found, inside = [], False
    for each in (memory.iomem(root) or ()) if (root / "proc/iomem").exists() else ():
        if each.depth == 0:
            inside = each.name == memory.SYSTEM_RAM
        elif inside and each.depth == 1:
            found.append(MemoryRange(each.start, each.size))
    return found


def _turn(number: int, word: str, wanted: BlockState, root: Path) -> None:
    path = root / BLOCKS / f"memory{number}" / "state"
    if _state(path.parent) is wanted:
        return  # the kernel answers EINVAL to a change that is none
    write_text(path, word)
    state = _state(path.parent)
    if state is not wanted:
        raise KernelError("verify", str(path), errno.EAGAIN, f"it reads {state.value!r} after the write")


def take_offline(number: int, root: Path = Path("/")) -> None:
    """The kernel moves everything out of the block and stops using it. Does nothing when it is offline.

    Raises KernelError: EBUSY or EAGAIN (something in it cannot be moved, perhaps later), EINVAL (it has a hole, or
    spans zones), EINTR, EPERM. The kernel may try for long; it gives up on a signal.
    """
    _turn(number, "offline", BlockState.OFFLINE, root)


def bring_online(number: int, zone: str = "", root: Path = Path("/")) -> None:
    """The kernel uses the block again, in `zone` (as it stood first in valid_zones) or where it thinks best.

    Does nothing when it is online. Raises KernelError.
    """
    _turn(number, _ONLINE.get(zone, "online"), BlockState.ONLINE, root)


def whole_blocks(ranges: Iterable[MemoryRange], size: int) -> tuple[MemoryRange, ...]:
    """What of each range can be memory blocks of `size` bytes: whole ones."""
    found = []
    for each in ranges:
        start, end = -(-each.start // size) * size, each.end // size * size
        if start < end:
            found.append(MemoryRange.between(start, end))
    return tuple(found)


def numbers(range_: MemoryRange, size: int) -> range:
    """The blocks of `size` bytes that `range_`, which is aligned to them, consists of."""
    return range(range_.start // size, range_.end // size)


def physical_map(root: Path = Path("/")) -> PhysicalMap | None:
    """RAM as the kernel was given it (blocks taken offline stay in), reserved and persistent ranges.

    None when the kernel hides the addresses. Raises KernelError and BadInputError.
    """
    listed = memory.iomem(root)
    if listed is None:
        return None
    outer = [(each.name, MemoryRange(each.start, each.size)) for each in listed if each.depth == 0]

    def named(*names: str) -> tuple[MemoryRange, ...]:
        return tuple(range_ for name, range_ in outer if name in names)

    return PhysicalMap(
        ram=named(memory.SYSTEM_RAM),
        reserved=named("Reserved", "reserved"),
        persistent=named(memory.LEGACY_PMEM, "Persistent Memory"),
    )


def firmware_ram(root: Path = Path("/")) -> tuple[MemoryRange, ...] | None:
    """RAM as the firmware reported it, before memmap= changed anything; None when the kernel does not keep it."""
    if not (root / FIRMWARE_MAP).is_dir():
        return None
    found = []
    for folder in (root / FIRMWARE_MAP).iterdir():
        if read_text(folder / "type").strip() == "System RAM":
            try:
                start, last = (int(read_text(folder / name), 16) for name in ("start", "end"))
            except ValueError as error:
                raise BadInputError(f"{folder} cannot be read", "its start or end is no number") from error
            found.append(MemoryRange.between(start, last + 1))
    return tuple(sorted(found))


def set_aside(cmdline: CommandLine) -> tuple[MemoryRange, ...]:
    """The ranges that memmap=SIZE$ADDRESS took from the kernel, in address order."""
    kind = memory.MemmapKind.RESERVED
    found = (each for each in memory.parse_memmap(cmdline) if each.kind is kind and each.size)
    return tuple(sorted(MemoryRange(each.start, each.size) for each in found))

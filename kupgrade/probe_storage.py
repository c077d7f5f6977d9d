"""Facts of file systems and swap, and of the disks below them, for a kernel beside this one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kupgrade.host import command
from kupgrade.kernel import blockfs, pci, pci_needs
from kupgrade.kernel.libc import read_text
from kupgrade.model.facts import Unknowns
from kupgrade.model.spawn_facts import OtherFileSystem, RootFileSystem, Stack


def port_of(device: Path) -> str:
    """The root port above a device; empty when there is none.

    A kernel that was started beside another one has the devices on root buses of segments of their own: there the
    function stands for its bus.
    """
    path = pci.addresses_in(device.resolve())
    if len(path) == 1 and path[0].domain != 0:
        return str(path[0])
    return str(path[0]) if len(path) > 1 else ""


def root_file_system(mount: blockfs.Mount, root: Path, unknown: Unknowns) -> RootFileSystem:
    """What is mounted on /. Raises KupgradeError."""
    block = pci_needs.block_of(mount, root)
    stack = _stack(block) if block.exists() else Stack.OTHER
    disks = pci_needs.disks_below(block) or ()
    if not disks and stack is not Stack.OTHER:
        unknown["disks below /"] = f"{mount.source} could not be traced to hardware"
    # Both may say ro or rw, and the mount's word counts; seclabel is printed, but no option.
    names = dict.fromkeys((*mount.options, *(o for o in mount.super_options if o not in ("rw", "ro", "seclabel"))))
    uuid = unknown.ask("root UUID", lambda: _uuid(block, root), "") if block.exists() else ""
    ports = tuple(port_of(disk) for disk in disks)
    return RootFileSystem(mount.source, mount.fstype, uuid, ",".join(names), stack, ports)


def _stack(block: Path) -> Stack:
    device = block.resolve()
    below = [path.resolve() for path in (device / "slaves").glob("*")]
    if (device / "dm").is_dir():
        plain = len(below) == 1 and _stack(below[0]) is Stack.PLAIN and _whole(device, below[0])
        return Stack.LINEAR if plain else Stack.MAPPED
    disk = device.parent if (device / "partition").exists() else device
    for name, kind in (("md", Stack.RAID), ("loop", Stack.LOOP), ("dm", Stack.MAPPED)):
        if (disk / name).is_dir():
            return kind
    return Stack.PLAIN


def _whole(mapped: Path, below: Path) -> bool:
    """Whether a mapped device is nothing but another name for the whole of the one below it."""
    sectors = read_text(below / "size").strip()
    name = read_text(mapped / "dm/name").strip()
    words = command.run(["dmsetup", "table", name], timeout=10.0).stdout.split()
    return words == ["0", sectors, "linear", read_text(below / "dev").strip(), "0"]


def _uuid(block: Path, root: Path) -> str:
    """The file system's UUID, by udev's links, else by asking blkid."""
    device = block.resolve()
    same = {device.name, *(path.name for path in (device / "slaves").glob("*"))}
    links = root / "dev/disk/by-uuid"
    for link in sorted(links.iterdir()) if links.is_dir() else ():
        if link.is_symlink() and link.readlink().name in same:
            return link.name
    argv = ["blkid", "-p", "-s", "UUID", "-o", "value", str(root / "dev" / device.name)]
    return command.run(argv, timeout=10.0).stdout.strip()


def others(mounts: Iterable[blockfs.Mount], held: blockfs.Mount | None, root: Path) -> tuple[OtherFileSystem, ...]:
    """File systems on block devices but the one `held` mounts, each once, by its first mount."""
    found: dict[str, OtherFileSystem] = {}
    mounts = tuple(mounts)
    for each in (*mounts, *blockfs.mounts_elsewhere(mounts, root)):
        here = held is not None and (each.device == held.device or each.source == held.source)
        if here or not each.block_backed or each.fstype.startswith("fuse.") or each.source in found:
            continue
        ports = tuple(port_of(disk) for disk in pci_needs.disks_of(each, root) or ())
        found[each.source] = OtherFileSystem(each.mountpoint, each.source, each.fstype, each.writable, ports)
    return tuple(found.values())


def swaps(root: Path) -> tuple[str, ...]:
    """Swap areas on disks and in files; compressed memory needs nothing to be carried over."""
    return tuple(name for name, _ in pci_needs.swaps(root) if not Path(name).name.startswith("zram"))

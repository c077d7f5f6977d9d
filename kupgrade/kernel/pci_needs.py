"""Which PCI functions this host itself stands on: behind /, /boot, swap, the default route and the console.

Sources: proc_pid_mountinfo(5), proc_swaps(5), Documentation/filesystems/proc.rst (net/route), net/ipv6/route.c
(ipv6_route), Documentation/admin-guide/serial-console.rst, sysfs links (block slaves, net lower_*, tty device).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel import blockfs
from kupgrade.kernel.libc import read_text
from kupgrade.kernel.pci import DEVICES, addresses_in
from kupgrade.model.machine import PciAddress
from kupgrade.model.pci import CLASS_DISPLAY, Need

_MOUNTS = {"/": Need.ROOT, "/boot": Need.BOOT, "/boot/efi": Need.BOOT, "/efi": Need.BOOT}
_RTF_UP = 1  # include/uapi/linux/route.h


@dataclass(frozen=True, slots=True)
class Needs:
    """`functions`: what each is needed for. `unknown`: what could not be traced to hardware, in words.

    A file system on the network, for one, needs a function that this module cannot name: unknown is not "none".
    """

    functions: Mapping[PciAddress, frozenset[Need]]
    unknown: tuple[str, ...]


def needs(root: Path = Path("/")) -> Needs:
    """Everything that is known. Raises KernelError when the mounts cannot be read."""
    found: dict[PciAddress, set[Need]] = {}
    unknown: list[str] = []
    for need, what, places in _places(root):
        if places is None:
            unknown.append(f"{need.value}: {what}")
        for place in places or ():
            # Every bridge on the way is needed as well.
            for address in addresses_in(place.resolve()):
                found.setdefault(address, set()).add(need)
    return Needs({address: frozenset(kinds) for address, kinds in sorted(found.items())}, tuple(unknown))


def _places(root: Path) -> Iterator[tuple[Need, str, tuple[Path, ...] | None]]:
    """Each thing in use with the device directories it lies on; None: cannot be told."""
    mounts = blockfs.mounts(root)
    for mountpoint, need in _MOUNTS.items():
        mount = blockfs.holding(mounts, mountpoint)
        if mount is None or (mountpoint not in ("/", "/boot") and mount.mountpoint != mountpoint):
            continue
        yield need, f"{mount.fstype} {mount.source} on {mount.mountpoint}", disks_of(mount, root)
    for name, kind in swaps(root):
        if kind == "file":
            held = blockfs.holding(mounts, name)
            yield Need.SWAP, name, disks_of(held, root) if held else None
        else:
            yield Need.SWAP, name, disks_below(root / "sys/class/block" / _device_name(name, root))
    for interface in _default_interfaces(root):
        yield Need.DEFAULT_ROUTE, interface, devices_below(interface, root)
    for console in _consoles(root):
        yield Need.CONSOLE, console, _of_console(console, root)


def _device_name(path: str, root: Path) -> str:
    """sda2 of /dev/sda2, dm-1 of /dev/mapper/swap."""
    return (root / path.lstrip("/")).resolve().name


def block_of(mount: blockfs.Mount, root: Path = Path("/")) -> Path:
    """The directory of the block device that a file system is mounted from; it need not exist."""
    block = root / "sys/dev/block" / mount.device
    if not block.exists() and mount.source.startswith("/dev/"):
        block = root / "sys/class/block" / _device_name(mount.source, root)  # btrfs: an anonymous device number
    return block


def disks_of(mount: blockfs.Mount, root: Path = Path("/")) -> tuple[Path, ...] | None:
    """The disks below a file system, as `disks_below`."""
    return disks_below(block_of(mount, root))


def disks_below(block: Path) -> tuple[Path, ...] | None:
    """The disks below a block device: through device mapper and md, or the controllers of one that several lead to.

    None: cannot be told.
    """
    if not block.exists():
        return None
    found: list[Path] = []
    todo, seen = [block.resolve()], set()
    while todo:
        device = todo.pop()
        if device in seen:
            continue
        seen.add(device)
        slaves = device / "slaves"
        below = [path.resolve() for path in slaves.iterdir()] if slaves.is_dir() else []
        if below:
            todo += below
        elif device.name.startswith("loop") or (device / "loop").is_dir():
            return None  # its file lies on some mount; nobody boots from it, so it is not followed
        else:
            behind = _controllers(device) or [device]
            if any(_far(each) for each in behind):
                return None
            found += behind
    return tuple(found)


def _controllers(disk: Path) -> list[Path]:
    """The controllers of an NVMe subsystem, whose disk it is (nvme_core.multipath): it links to them, not the disk."""
    top = next((each for each in disk.parents if each.parent.name == "nvme-subsystem"), None)
    links = sorted(top.glob("nvme*")) if top is not None else []
    return [each.resolve() for each in links if each.is_symlink() and re.fullmatch(r"nvme[0-9]+", each.name)]


def _far(disk: Path) -> bool:
    """Whether it is on the network, over an interface that its path does not name (iSCSI, nbd, rbd, NVMe over TCP)."""
    if addresses_in(disk):
        return False
    software = "virtual" in disk.parts and not disk.name.startswith(("zram", "ram"))
    return software or any(re.fullmatch(r"session[0-9]+", part) for part in disk.parts)


def swaps(root: Path) -> tuple[tuple[str, str], ...]:
    """(path, partition or file) of each active swap area."""
    try:
        lines = read_text(root / "proc/swaps").splitlines()[1:]
    except KernelError:
        return ()  # a kernel without swap
    rows = (line.split() for line in lines)
    return tuple((words[0].replace("\\040", " "), words[1]) for words in rows if len(words) >= 2)


def _default_interfaces(root: Path) -> tuple[str, ...]:
    found = set()
    for line in _lines(root / "proc/net/route")[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000" and int(words[3], 16) & _RTF_UP:
            found.add(words[0])
    for line in _lines(root / "proc/net/ipv6_route"):
        words = line.split()
        if len(words) == 10 and words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
            found.add(words[9])
    return tuple(sorted(found))


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except KernelError:
        return []  # a kernel without this protocol


def devices_below(interface: str, root: Path) -> tuple[Path, ...] | None:
    """The devices below an interface: through bonds, bridges and VLANs. A purely virtual one has none."""
    found: list[Path] = []
    todo, seen = [interface], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        folder = root / "sys/class/net" / name
        if not folder.exists():
            return None
        if (folder / "device").exists():
            found.append(folder / "device")
        todo += [path.name.removeprefix("lower_") for path in folder.glob("lower_*")]
    return tuple(found) if found else None


def _consoles(root: Path) -> tuple[str, ...]:
    """The consoles of /dev/console, as in console= on the command line."""
    return tuple(" ".join(_lines(root / "sys/class/tty/console/active")).split())


def _of_console(console: str, root: Path) -> tuple[Path, ...] | None:
    if console == "tty0":  # the virtual terminals are on the display that the firmware used
        return tuple(path for path in _all(root) if _is_boot_display(path))
    if console.startswith("hvc"):
        drivers = ((path, [link.resolve().name for link in path.glob("virtio*/driver")]) for path in _all(root))
        return tuple(path for path, names in drivers if "virtio_console" in names) or None
    device = root / "sys/class/tty" / console / "device"
    return (device,) if device.exists() else None


def _all(root: Path) -> tuple[Path, ...]:
    folder = root / DEVICES
    return tuple(sorted(folder.iterdir())) if folder.is_dir() else ()


def _is_boot_display(path: Path) -> bool:
    try:
        display = int(read_text(path / "class"), 16) >> 16 == CLASS_DISPLAY
        return display and read_text(path / "boot_vga").strip() == "1"
    except (KernelError, ValueError):
        return False

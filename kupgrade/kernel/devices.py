"""Which drivers this host's storage and network hang on (sysfs, Documentation/filesystems/sysfs.rst)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kupgrade.kernel.blockfs import Mount


def _module_of(device: Path) -> set[str]:
    """Modules of the drivers of `device` and of every device above it."""
    found = set()
    while len(device.parts) > 2:
        module = device / "driver" / "module"
        if module.exists():
            found.add(module.resolve().name)
        device = device.parent
    return found


def loaded_as_module(name: str, root: Path = Path("/")) -> bool:
    """Whether `name` was loaded as a module; what is compiled in has no initstate (sysfs-module)."""
    return (root / "sys/module" / name / "initstate").exists()


def drivers_in_use(root: Path, mounts: Iterable[Mount]) -> tuple[str, ...]:
    """Modules behind mounted block devices, physical network interfaces and the file systems on the block devices."""
    found: set[str] = set()
    for mount in mounts:
        if not mount.block_backed:
            continue
        found.add(mount.fstype)
        block = root / "sys/dev/block" / mount.device
        if block.exists():
            found |= _module_of(block.resolve())
    network = root / "sys/class/net"
    if network.is_dir():
        for interface in network.iterdir():
            device = interface / "device"
            if device.exists():
                found |= _module_of(device.resolve())
    return tuple(sorted(found))

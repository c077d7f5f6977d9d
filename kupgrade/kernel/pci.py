"""PCI in sysfs: functions and bridges; taking functions from their drivers, off the bus, and back.

Sources: Documentation/ABI/testing/sysfs-bus-pci, Documentation/PCI/sysfs-pci.rst, include/linux/ioport.h (resource
flags), Documentation/ABI/testing/sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel.acpi import EcamRange
from kupgrade.kernel.libc import read_text, reported, write_text
from kupgrade.model.machine import MemoryRange, PciAddress
from kupgrade.model.pci import Bridge, BridgeWindow, DomainType, Movable, PciFunction

DEVICES = "sys/bus/pci/devices"
DRIVERS = "sys/bus/pci/drivers"

IORESOURCE_MEM, IORESOURCE_PREFETCH = 0x200, 0x2000
IORESOURCE_DISABLED, IORESOURCE_UNSET = 0x10000000, 0x20000000
BASE_RESOURCES, BRIDGE_RESOURCES = 7, 4  # six BARs and the ROM; I/O, memory, prefetchable memory and one for CardBus


def folder_of(address: PciAddress, root: Path = Path("/")) -> Path:
    """The function's directory, through the bus's links."""
    return root / DEVICES / str(address)


def addresses_in(path: Path) -> tuple[PciAddress, ...]:
    """The PCI functions that a resolved sysfs path leads through, outermost first."""
    found = []
    for part in path.parts:
        try:
            found.append(PciAddress.parse(part))
        except BadInputError:
            continue
    return tuple(found)


def parse_windows(text: str) -> tuple[BridgeWindow, ...]:
    """The open memory windows out of a bridge's `resource` file. Raises BadInputError.

    Windows are the last four lines; how many stand before them depends on CONFIG_PCI_IOV (lines 7-10 or 13-16). A file
    of seven lines is that of a function without a bus behind it.
    """
    lines = text.splitlines()
    if len(lines) <= BASE_RESOURCES:
        return ()
    found = []
    for line in lines[-BRIDGE_RESOURCES:]:
        try:
            start, last, flags = (int(word, 16) for word in line.split())
        except ValueError as error:
            raise BadInputError("A line of a PCI resource file cannot be read", line[:80]) from error
        if flags & IORESOURCE_MEM and not flags & (IORESOURCE_DISABLED | IORESOURCE_UNSET) and last > start:
            prefetchable = bool(flags & IORESOURCE_PREFETCH)
            found.append(BridgeWindow(MemoryRange.between(start, last + 1), prefetchable))
    return tuple(found)


def _hex(path: Path) -> int:
    try:
        return int(read_text(path), 16)
    except ValueError as error:
        raise BadInputError(f"{path} cannot be read", "it holds no number") from error


def _link(path: Path) -> str:
    """The last part of what a link points to; empty without the link."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def driver_of(address: PciAddress, root: Path = Path("/")) -> str:
    """The bound driver's name; empty for none."""
    return _link(folder_of(address, root) / "driver")


def _domain_type(group: str, root: Path) -> DomainType:
    try:
        return DomainType(read_text(root / "sys/kernel/iommu_groups" / group / "type").strip())
    except (KernelError, ValueError):
        return DomainType.UNKNOWN


def function(address: PciAddress, root: Path = Path("/")) -> PciFunction:
    """One function. Raises KernelError (ENOENT: it is not there) and BadInputError."""
    folder = folder_of(address, root)
    group = _link(folder / "iommu_group")
    try:
        power = read_text(folder / "power/control").strip()
    except KernelError:
        power = ""
    return PciFunction(
        address=address,
        vendor=_hex(folder / "vendor"),
        device=_hex(folder / "device"),
        class_code=_hex(folder / "class"),
        driver=_link(folder / "driver"),
        path=addresses_in(folder.resolve())[:-1],
        iommu_group=int(group) if group.isdecimal() else None,
        iommu_type=_domain_type(group, root) if group else None,
        power_control=power,
    )


def functions(root: Path = Path("/")) -> tuple[PciFunction, ...]:
    """Every function, by address; none without PCI. Raises KernelError and BadInputError."""
    if not (root / DEVICES).is_dir():
        return ()
    with reported("readdir", root / DEVICES):
        names = os.listdir(root / DEVICES)  # noqa: PTH208 -- names, not paths, are wanted
    found = []
    for address in sorted(PciAddress.parse(name) for name in names):
        try:
            found.append(function(address, root))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise  # one that was removed meanwhile is no error
    return tuple(found)


def bridge(address: PciAddress, root: Path = Path("/")) -> Bridge:
    """A PCI-to-PCI bridge. Raises KernelError (ENOENT: it is none, or gone) and BadInputError."""
    folder = folder_of(address, root)
    try:
        secondary, subordinate = (
            int(read_text(folder / name)) for name in ("secondary_bus_number", "subordinate_bus_number")
        )
    except ValueError as error:
        raise BadInputError(f"{folder} cannot be read", "a bus number is no number") from error
    try:
        windows = parse_windows(read_text(folder / "resource"))
    except KernelError:
        windows = None
    return Bridge(address, secondary, subordinate, len(addresses_in(folder.resolve())) == 1, windows)


def bridges(root: Path = Path("/")) -> tuple[Bridge, ...]:
    """Every PCI-to-PCI bridge with a bus behind it, by address."""
    here = (each.address for each in functions(root) if each.is_bridge)
    return tuple(bridge(address, root) for address in here if _has_bus(address, root))


def _has_bus(address: PciAddress, root: Path) -> bool:
    return (folder_of(address, root) / "secondary_bus_number").exists()


def movable(everything: Iterable[PciFunction], ports: Iterable[Bridge]) -> tuple[Movable, ...]:
    """The root ports with exactly one device behind them, by address.

    One device, not one function: its functions share a bus and cannot be parted. Whether it may go is not said here.
    """
    everything = tuple(everything)
    found = []
    for port in sorted((each for each in ports if each.root_port), key=lambda each: each.address):
        behind = tuple(each for each in everything if each.root_port == port.address)
        places = {(each.address.bus, each.address.device) for each in behind}
        if len(places) == 1 and not any(each.is_bridge for each in behind):
            found.append(Movable(port, behind))
    return tuple(found)


def ecam_of(address: PciAddress, ranges: Sequence[EcamRange]) -> EcamRange | None:
    """The configuration space that a function is reached through; None when the MCFG names none."""
    for each in ranges:
        if each.segment == address.domain and each.first <= address.bus <= each.last:
            return each
    return None


def unbind(address: PciAddress, root: Path = Path("/")) -> None:
    """Take the function from its driver; it stays on the bus and in its IOMMU group. Does nothing without a driver.

    Raises KernelError. The driver's own work may take long: the write returns when it is done.
    """
    if driver_of(address, root):
        path = folder_of(address, root) / "driver/unbind"
        write_text(path, str(address))
        if driver := driver_of(address, root):
            raise KernelError("verify", str(path), errno.EBUSY, f"it is bound to {driver} after the write")


def bind(address: PciAddress, driver: str, root: Path = Path("/")) -> None:
    """Give the function to a driver. Does nothing when it has it. Raises KernelError (ENODEV, EBUSY, the probe's)."""
    if driver_of(address, root) == driver:
        return
    path = root / DRIVERS / driver / "bind"
    write_text(path, str(address))
    if (found := driver_of(address, root)) != driver:
        raise KernelError("verify", str(path), errno.ENODEV, f"it is bound to {found or 'nothing'} after the write")


def remove(address: PciAddress, root: Path = Path("/")) -> None:
    """Take the function off the bus; the kernel forgets it until a rescan. Does nothing when it is gone."""
    folder = folder_of(address, root)
    if folder.exists():
        write_text(folder / "remove", "1")
        if folder.exists():
            raise KernelError("verify", str(folder), errno.EBUSY, "it is still there after the write")


def rescan(port: PciAddress | None = None, root: Path = Path("/")) -> None:
    """Look for functions on the bus of `port` and behind it, or everywhere. Raises KernelError."""
    write_text(folder_of(port, root) / "rescan" if port else root / "sys/bus/pci/rescan", "1")


def set_power_control(address: PciAddress, value: str, root: Path = Path("/")) -> None:
    """Let a function sleep when idle ("auto") or never ("on"). Raises KernelError.

    A root port whose function another kernel drives looks idle to this one: it must stay on.
    """
    if value not in ("on", "auto"):
        raise BadInputError(f"{value!r:.20} is no setting of power/control", "expected on or auto")
    path = folder_of(address, root) / "power/control"
    write_text(path, value)
    state = read_text(path).strip()
    if state != value:
        raise KernelError("verify", str(path), errno.EAGAIN, f"it reads {state!r} after the write")

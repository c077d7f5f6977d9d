"""The buses that pass to a kernel beside this one, with the devices on them: found, told in a table, made still, back.

In a kernel that the firmware started each is a bus below a root port. In one that was itself spawned each is a root
bus of a segment of its own, and is named by the address of a function on it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError, RefusedError, ToolError
from kupgrade.host import nft
from kupgrade.host.nft import Interface
from kupgrade.kernel import acpi, acpi_devices, kspawn, pci, pci_host
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.libc import reported
from kupgrade.machine.spawn_box import SEGMENT
from kupgrade.model.machine import PciAddress
from kupgrade.model.pci import Movable, PciFunction

AWAKE = "on"


@dataclass(frozen=True, slots=True)
class PortPower:
    """The power/control of a root port as it was."""

    port: PciAddress
    control: str


def _refused(port: PciAddress, why: str) -> RefusedError:
    remedy = "Name a root port, or another bus, with one device and no bridge behind it"
    return RefusedError(f"The bus at {port} cannot pass to another kernel", why, remedy)


def find(ports: Sequence[PciAddress], root: Path = Path("/")) -> tuple[Movable, ...]:
    """What lies behind each of `ports`, in their order. Raises RefusedError for one that cannot pass, KernelError."""
    functions = pci.functions(root)
    known = {each.port.address: each for each in pci.movable(functions, pci.bridges(root))}
    return tuple(known[port] if port in known else _on_root_bus(port, functions, root) for port in ports)


def _on_root_bus(port: PciAddress, functions: Sequence[PciFunction], root: Path) -> Movable:
    named = next((each for each in functions if each.address == port), None)
    if named is None:
        raise _refused(port, "there is no such function")
    if named.is_bridge and not named.path:
        raise _refused(port, "there is not exactly one device behind it")
    if named.path or port.domain == 0:
        raise _refused(port, "it is no root port, and not alone on a root bus")
    beside = tuple(each for each in functions if each.address.domain == port.domain)
    if len({(each.address.bus, each.address.device) for each in beside}) != 1:
        raise _refused(port, f"segment {port.domain:04x} holds more than one device")
    return Movable(pci_host.root_bus(port, root), beside)


def table(movables: Sequence[Movable], first_number: int, root: Path = Path("/")) -> bytes:
    """One SSDT that tells a spawned kernel of each bus as a host bridge of segment `first_number` and following.

    The numbers must be new to that kernel. Raises RefusedError when configuration space or windows are not known.
    """
    spaces, devices = pci_host.ecam(root), list[bytes]()
    for number, each in enumerate(movables, first_number):
        port, bus = each.port, each.port.secondary
        space = pci.ecam_of(PciAddress(port.address.domain, bus, 0, 0), spaces)
        if space is None or not space.first <= port.subordinate <= space.last:
            raise _refused(port.address, f"no memory-mapped configuration space is known for bus {bus:#04x}")
        if not port.windows:
            raise _refused(port.address, "its memory windows are not known, or none is open")
        if number in (0, SEGMENT):
            raise _refused(port.address, f"{number} is no free PCI segment in the new kernel")
        devices.append(acpi_devices.reserved_ecam(number, space.slice(bus, port.subordinate)))
        devices.append(acpi_devices.host_bridge(number, space, bus, port.subordinate, port.windows))
    return acpi.ssdt(acpi_devices.system_bus(*devices))


def power(movables: Sequence[Movable], root: Path = Path("/")) -> tuple[PortPower, ...]:
    """Whether each root port may sleep; a root bus has none. Raises KernelError."""
    ports = (each.port.address for each in movables if each.port.root_port)
    return tuple(PortPower(port, pci.function(port, root).power_control) for port in ports)


def keep_awake(movables: Sequence[Movable], root: Path = Path("/")) -> None:
    """No root port sleeps: with its device driven by another kernel it looks idle to this one. Raises KernelError."""
    for each in power(movables, root):
        if each.control != AWAKE:
            pci.set_power_control(each.port, AWAKE, root)


def restore_power(before: Sequence[PortPower], root: Path = Path("/")) -> None:
    """As it was; a value that was not known is left. Raises KernelError."""
    for each in before:
        if each.control and each.control != AWAKE:
            pci.set_power_control(each.port, each.control, root)


def _driven(movables: Sequence[Movable]) -> Iterator[kspawn.PciFunction]:
    """The functions that this kernel drives; of others there is nothing to make still."""
    for movable in movables:
        for each in movable.functions:
            if each.driver:
                at = each.address
                yield kspawn.PciFunction(at.domain, at.bus, at.device << 3 | at.function)


def interfaces(movables: Sequence[Movable], root: Path = Path("/")) -> tuple[Interface, ...]:
    """The network interfaces whose device is one of the functions, or stands on one. Raises KernelError."""
    behind = {str(function.address) for movable in movables for function in movable.functions}
    listed = root / "sys/class/net"
    with reported("list", listed):
        return tuple(
            Interface(path.name, int((path / "ifindex").read_text()))
            for path in sorted(listed.iterdir())
            if behind & set(path.resolve().parts)
        )


def check_silence(movables: Sequence[Movable], root: Path = Path("/")) -> None:
    """Raises KupgradeError where the interfaces could not be kept silent while their devices stand still."""
    try:
        nft.silence(interfaces(movables, root), dry=True)
    except ToolError as error:
        raise KupgradeError(
            "A network card that passes to the new kernel cannot be kept silent in this one",
            error.why,
            "Run a kernel with CONFIG_NETFILTER_EGRESS, or keep the card: [engine.spawn] keep",
        ) from error


def quiesce(device: Kspawn, movables: Sequence[Movable], root: Path = Path("/")) -> None:
    """Every function stands still, in their order, and stays so when `device` is closed; done as well when it does.

    Before that nothing is sent through them any more: see nft.silence.
    Raises KupgradeError, and then those that were made still by this call are driven again, the last first.
    """
    done: list[kspawn.PciFunction] = []
    quiet = interfaces(movables, root)
    try:
        nft.silence(quiet)
        for function in _driven(movables):
            device.quiesce(function, keep=True)
            done.append(function)
    except KupgradeError as error:
        try:
            _resume(device, done)
            nft.end_silence(quiet)
        except KupgradeError as second:
            error.add_note(f"and what was still already did not come back: {second}")
        raise


def resume(device: Kspawn, movables: Sequence[Movable], root: Path = Path("/")) -> None:
    """This kernel drives every function again; done as well when none is quiesced. The other kernel must be fenced.

    Raises the first KernelError once all were tried; then nothing is sent through any of them.
    """
    _resume(device, list(_driven(movables)))
    nft.end_silence(interfaces(movables, root))


def _resume(device: Kspawn, functions: Sequence[kspawn.PciFunction]) -> None:
    first: KernelError | None = None
    for function in reversed(functions):
        try:
            device.resume(function)
        except KernelError as error:
            if error.errno != errno.EALREADY:
                first = first or error
    if first is not None:
        raise first

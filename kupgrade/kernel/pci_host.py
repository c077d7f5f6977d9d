"""Host bridges as the running kernel drives them: their configuration space, their windows, the bus below them.

The MCFG names configuration space known at boot. A bridge that came by a table at run time (its _CBA), as all of a
spawned kernel's do, is known by what the kernel entered into /proc/iomem.

Sources: arch/x86/pci/mmconfig-shared.c (the names "PCI ECAM" and, before Linux 6.8, "PCI MMCONFIG"),
drivers/pci/probe.c ("PCI Bus", pci_create_root_bus).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.kernel import acpi, memory
from kupgrade.kernel.acpi import ECAM_BUS, EcamRange
from kupgrade.kernel.memory import IoRange
from kupgrade.model.machine import MemoryRange, PciAddress
from kupgrade.model.pci import Bridge, BridgeWindow, Movable, PciFunction

_ECAM = re.compile(r"PCI (?:ECAM|MMCONFIG) ([0-9a-f]{4}) \[bus ([0-9a-f]{2})-([0-9a-f]{2})\]")


def _iomem(root: Path) -> tuple[IoRange, ...]:
    found = memory.iomem(root)
    if found is None:
        raise KupgradeError(
            "It cannot be told where PCI lies in memory", "the kernel hides the addresses of /proc/iomem"
        )
    return found


def ecam(root: Path = Path("/")) -> tuple[EcamRange, ...]:
    """All memory-mapped configuration space in use, that of the MCFG first. Raises KupgradeError."""
    listed = list(acpi.host_mcfg(root) or ())
    for each in _iomem(root):
        if match := _ECAM.fullmatch(each.name):
            segment, first, last = (int(text, 16) for text in match.groups())
            if not any(known.segment == segment and known.first <= first and last <= known.last for known in listed):
                listed.append(EcamRange(each.start - first * ECAM_BUS, segment, first, last))
    return tuple(listed)


def root_bus(address: PciAddress, root: Path = Path("/")) -> Bridge:
    """The root bus that a function stands on, as a bridge of the function's own address without a port.

    Its windows are told as not prefetchable, which every BAR may lie in. Raises KupgradeError.
    """
    name = f"PCI Bus {address.domain:04x}:{address.bus:02x}"
    windows = tuple(
        BridgeWindow(MemoryRange(each.start, each.size), prefetchable=False)
        for each in _iomem(root)
        if each.name == name
    )
    ranges = [each for each in ecam(root) if each.segment == address.domain and each.first <= address.bus <= each.last]
    last = ranges[0].last if ranges and ranges[0].first == address.bus else address.bus
    return Bridge(address, address.bus, last, False, windows)


def movable(functions: Iterable[PciFunction], root: Path = Path("/")) -> tuple[Movable, ...]:
    """The devices that have a root bus, and a segment, to themselves: what a spawned kernel was given. By address."""
    everything = tuple(functions)
    found = []
    for each in everything:
        beside = tuple(other for other in everything if other.address.domain == each.address.domain)
        alone = len({(other.address.bus, other.address.device) for other in beside}) == 1
        if each.address.domain and alone and not each.path and not each.is_bridge and each is beside[0]:
            found.append(Movable(root_bus(each.address, root), beside))
    return tuple(found)

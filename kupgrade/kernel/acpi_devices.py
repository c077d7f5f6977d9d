"""The devices that a spawned kernel is told of, as AML: PCI buses, their configuration space, memory, a serial port.

Names are built from a number: it must be the caller's own for each device in one kernel's life, because devices of
several SSDTs, loaded one after another, share one name space.

Sources: ACPI 6.5 sections 6.1 (identification), 6.5.6 (_SEG, _BBN), 7.4.2.6 (_S5), 9.11.2 (PNP0C80); PCI Firmware
Specification 3.3 sections 4.1.2 (PNP0C02) and 4.1.3 (_CBA); Linux drivers/acpi/pci_root.c, acpi_memhotplug.c.
"""

from __future__ import annotations

from collections.abc import Sequence

from kupgrade.errors import BadInputError
from kupgrade.kernel import aml
from kupgrade.kernel.acpi import EcamRange
from kupgrade.model.machine import MemoryRange
from kupgrade.model.pci import BridgeWindow

PRESENT = 15  # _STA: present, enabled, shown, functioning
UART_PORTS = 8  # of a 16550


def _path(letter: str, number: int) -> str:
    if not 0 <= number <= 0xFFF:
        raise BadInputError(f"{number} is no number for a device", "expected 0 to 4095")
    return f"{letter}{number:03X}"


def _identified(hid: str, number: int) -> bytes:
    return aml.name("_HID", aml.eisa_id(hid)) + aml.name("_UID", aml.integer(number))


def host_bridge(number: int, ecam: EcamRange, first: int, last: int, windows: Sequence[BridgeWindow]) -> bytes:
    """The buses behind a root port as a host bridge of PCI segment `number`.

    `ecam`: where their configuration space is (its base goes into _CBA, so an SSDT at run time needs no MCFG).
    `windows`: the root port's memory windows, from which the functions' BARs were set.
    """
    if not ecam.first <= first <= last <= ecam.last:
        raise BadInputError(f"Buses {first} to {last} are not in {ecam}")
    return aml.device(
        _path("P", number),
        _identified("PNP0A08", number),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", aml.integer(number)),
        aml.name("_BBN", aml.integer(first)),
        aml.name("_CBA", aml.integer(ecam.base)),
        aml.resources(
            aml.word_bus_numbers(first, last),
            *(aml.window_memory(window.range, window.prefetchable) for window in windows),
        ),
    )


def reserved_ecam(number: int, range_: MemoryRange) -> bytes:
    """Configuration space as a motherboard resource: Linux uses none that is not claimed so (pci_mmcfg_reserved)."""
    below = range_.end <= 1 << 32
    descriptor = aml.memory32_fixed(range_) if below else aml.own_memory(range_, cacheable=False)
    return aml.device(_path("R", number), _identified("PNP0C02", number), aml.resources(descriptor))


def memory_device(number: int, ranges: Sequence[MemoryRange]) -> bytes:
    """Memory to be added at run time. Without _STA Linux ignores the device silently."""
    return aml.device(
        _path("M", number),
        _identified("PNP0C80", number),
        aml.name("_STA", aml.integer(PRESENT)),
        aml.resources(*(aml.own_memory(each, cacheable=True) for each in ranges)),
    )


def uart(number: int, base: int) -> bytes:
    """A 16550 at I/O port `base`, without an interrupt: there is no IOAPIC to route it, so the driver polls."""
    ports = aml.resources(aml.io_ports(base, UART_PORTS))
    return aml.device(_path("U", number), _identified("PNP0501", number), ports)


def soft_off() -> bytes:
    r"""\_S5: what "power off" writes into the sleep control register."""
    values = (aml.integer(value) for value in (5, 0, 0, 0))
    return aml.name("\\_S5", aml.package(*values))


def system_bus(*devices: bytes) -> bytes:
    r"""The devices in \_SB, the one place Linux looks for them."""
    return aml.scope("\\_SB", *devices)

"""Logical numbers of CPUs that the kernel does not run on yet, by their APIC IDs.

The kernel tells APIC IDs of online CPUs only. It numbers CPUs in the order of the MADT, the one that booted it first.

Source: arch/x86/kernel/cpu/topology.c (topology_register_apic, topo_get_cpunr; Linux 6.9 and later).
"""

from __future__ import annotations

from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.kernel import acpi, cpu


def listed(root: Path = Path("/")) -> tuple[int, ...]:
    """The APIC IDs of the MADT's enabled CPUs, the placeholder that a spawned kernel is told of left out.

    Empty without a MADT. Raises KernelError and BadInputError.
    """
    madt = acpi.host_madt(root)
    if madt is None:
        return ()
    ids = tuple(each.apic_id for each in madt.cpus if each.enabled)
    if madt.mailbox is not None and len(ids) > 1 and ids[0] == acpi.fake_apic_id(ids[1:]):
        return ids[1:]
    return ids


def by_apic_id(root: Path = Path("/")) -> dict[int, int]:
    """The number of each CPU, by APIC ID. Raises KupgradeError when an online CPU has another one than is expected."""
    online = cpu.cpuinfo(root).apic_ids
    ids = listed(root)
    boot = online.get(0)
    if boot is None:
        raise KupgradeError("The numbers of this kernel's CPUs are not known", "CPU 0 tells no APIC ID")
    order = (boot, *(each for each in ids if each != boot))
    numbers = {apic_id: number for number, apic_id in enumerate(order)}
    for number, apic_id in online.items():
        if numbers.setdefault(apic_id, number) != number:
            why = f"CPU {number} has APIC ID {apic_id}, expected at {numbers[apic_id]}"
            raise KupgradeError("The numbers of this kernel's CPUs are not known", why)
    return numbers

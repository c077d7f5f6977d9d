"""The park loop of the kernel that runs here, when it was itself spawned: where its offline CPUs wait.

It brings CPUs online by mailbox: one that got INIT (another kernel ran on it) has to be led back into the loop first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.core import box
from kupgrade.errors import KupgradeError
from kupgrade.kernel import park_code
from kupgrade.kernel.kspawn import Entry, Kspawn
from kupgrade.kernel.libc import read_text
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import BOX_PARAMETER, Instance, parse_range

PATIENCE = 5.0  # seconds for a CPU to come into a loop
POLL = 0.002


def own_box(root: Path = Path("/")) -> MemoryRange | None:
    """The box that this kernel lives in; None when the firmware started it. Raises KernelError and BadInputError."""
    value = CommandLine.parse(read_text(root / "proc/cmdline")).get(BOX_PARAMETER)
    return None if value is None else parse_range(value)


def own_loop(root: Path = Path("/")) -> MemoryRange | None:
    """Mailbox, park loop and slots of this kernel; None when the firmware started it."""
    found = own_box(root)
    return None if found is None else MemoryRange(found.start, box.REGISTERS)


@dataclass
class Loop:
    """A park loop, this kernel's own or the new one's. `area`: from its mailbox to its slots."""

    device: Kspawn
    area: MemoryRange
    page_tables: int
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, device: Kspawn, instance: Instance) -> Loop:
        """A spawned kernel's."""
        return cls(device, MemoryRange(instance.box.start, box.REGISTERS), instance.page_tables)

    @classmethod
    def own(cls, device: Kspawn, root: Path = Path("/")) -> Loop | None:
        """This kernel's; None when the firmware started it, which then starts CPUs by INIT."""
        area = own_loop(root)
        return None if area is None else cls(device, area, area.start + box.PAGE_TABLES)

    @property
    def entry(self) -> Entry:
        """Where CPUs enter it."""
        return Entry(self.area.start + box.PARK, self.page_tables)

    def waiting(self) -> tuple[int, ...]:
        """The APIC IDs of the CPUs that wait there. Raises KernelError and BadInputError."""
        mapping = self.device.map(self.area.start, self.area.size, writable=False)
        with contextlib.closing(mapping), memoryview(mapping) as memory:
            with memory[box.PARK : box.PARK + park_code.PAGE] as page:
                slots = park_code.slots_of(page)
            at = slots.start - self.area.start
            with memory[at : at + slots.size] as table:
                return park_code.waiting(table)

    def await_parked(self, apic_id: int) -> None:
        """Raises KupgradeError when the CPU does not come."""
        deadline = self.clock() + PATIENCE
        while apic_id not in self.waiting():
            if self.clock() > deadline:
                why = f"not within {PATIENCE:g} s"
                raise KupgradeError(f"The CPU with APIC ID {apic_id} does not come to its park loop", why)
            self.pause(POLL)

    def admit(self, apic_id: int) -> None:
        """A stopped CPU waits here again, for this kernel to bring it online. Raises KernelError, KupgradeError."""
        self.device.start(apic_id, self.entry, own=True, foreign=True)
        self.await_parked(apic_id)

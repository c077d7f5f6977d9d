"""The park loop of the kernel that runs here, when it was itself spawned: where its offline CPUs wait.

It brings CPUs online by mailbox: one that got INIT (another kernel ran on it) has to be led back into the loop first.
The bootstrap processor may never get INIT: it goes from one kernel's loop to the other's by mail.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
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

PATIENCE = 5.0  # seconds for a CPU to come into a loop, or to take its mail
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
    """A park loop, this kernel's own or the new one's: `area` begins with the mailbox."""

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

    @contextlib.contextmanager
    def _memory(self, *, writable: bool = False) -> Iterator[memoryview]:
        mapping = self.device.map(self.area.start, self.area.size, writable=writable)
        with contextlib.closing(mapping), memoryview(mapping) as view:
            yield view

    def waiting(self) -> tuple[int, ...]:
        """The APIC IDs of the CPUs that wait there. Raises KernelError and BadInputError."""
        with self._memory() as memory, memory[box.PARK : box.PARK + park_code.PAGE] as page:
            slots = park_code.slots_of(page)
            at = slots.start - self.area.start
            with memory[at : at + slots.size] as table:
                return park_code.waiting(table)

    def await_parked(self, apic_id: int) -> None:
        """Raises KupgradeError when the CPU does not come."""
        self._until(lambda: apic_id in self.waiting(), f"The CPU with APIC ID {apic_id} does not come to its park loop")

    def admit(self, apic_id: int) -> None:
        """A stopped CPU waits here again, for this kernel to bring it online. Raises KernelError, KupgradeError."""
        self.device.start(apic_id, self.entry, own=True, foreign=True)
        self.await_parked(apic_id)

    def send(self, apic_id: int, to: Loop) -> None:
        """A CPU that waits here goes to wait in another loop, without INIT.

        The other kernel's page tables must map this loop. Raises KupgradeError when it does not wait here or does not
        come there; in between it can not be had back.
        """
        if apic_id not in self.waiting():
            raise KupgradeError(f"The CPU with APIC ID {apic_id} cannot be moved", "it is not in the park loop")
        with self._memory(writable=True) as memory:
            code = park_code.exit_code(to.page_tables, to.entry.rip)
            at = box.PARK + park_code.EXIT_OFFSET
            memory[at : at + len(code)] = code
            self._mail(memory, apic_id, self.area.start + at)
        to.await_parked(apic_id)

    def fetch(self, apic_id: int, back: Loop) -> None:
        """The way back: a CPU that waits here goes to `back`, which these page tables map. Raises KupgradeError."""
        with self._memory(writable=True) as memory:
            self._mail(memory, apic_id, back.entry.rip)
        back.await_parked(apic_id)

    def _mail(self, memory: memoryview, apic_id: int, vector: int) -> None:
        mail, size = park_code.wake_up(apic_id, vector), park_code.COMMAND_SIZE
        memory[box.MAILBOX + size : box.MAILBOX + len(mail)] = mail[size:]
        memory[box.MAILBOX : box.MAILBOX + size] = mail[:size]
        with memory[box.MAILBOX : box.MAILBOX + size] as command:
            self._until(lambda: not any(command), f"The CPU with APIC ID {apic_id} does not take its mail")

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = self.clock() + PATIENCE
        while not done():
            if self.clock() > deadline:
                raise KupgradeError(what, f"not within {PATIENCE:g} s")
            self.pause(POLL)

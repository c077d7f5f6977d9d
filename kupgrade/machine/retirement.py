"""How the old kernel ends in favour of the one beside it: CPUs, the last buses, memory, and then this kernel itself.

Every part can be had again after a failure or a kill: what passed is left with the new kernel, which serves by then; a
CPU that it could not take is this kernel's again. Only the last instruction cannot be taken back.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kupgrade.core import inheritance
from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import cpu, cpu_numbers, memory_blocks
from kupgrade.kernel.kspawn import Entry, Kspawn
from kupgrade.kernel.libc import read_text
from kupgrade.machine import buses, spawn_box
from kupgrade.machine.standby_client import AgentError, StandbyClient
from kupgrade.model import standby
from kupgrade.model.codec import encode
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange, PciAddress
from kupgrade.model.pci import Movable
from kupgrade.model.spawn import BOX_PARAMETER, Instance, parse_range
from kupgrade.model.standby import Legacy

PARK_PATIENCE = 5.0  # seconds for a CPU to be in the loop
POLL = 0.002
ONLINE_TIMEOUT = 30.0  # seconds for the new kernel to run on a CPU
TABLE_TIMEOUT = 30.0

Told = Callable[[str, float], None]  # a part that is done, and the seconds it took


def _untold(_part: str, _seconds: float) -> None:
    """Nobody listens."""


@dataclass
class Retirement:
    """`client` asks the agent of `instance`. `pause` and `clock` as in time."""

    device: Kspawn
    instance: Instance
    client: StandbyClient
    root: Path = Path("/")
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    told: Told = _untold

    @property
    def entry(self) -> Entry:
        """The new kernel's park loop."""
        return Entry(self.instance.park, self.instance.page_tables)

    def waiting(self) -> tuple[int, ...]:
        """The APIC IDs of the CPUs in the new kernel's park loop. Raises KernelError."""
        area = spawn_box.control_area(self.instance)
        mapping = self.device.map(area.start, area.size, writable=False)
        with contextlib.closing(mapping), memoryview(mapping) as control:
            return spawn_box.parked(control, self.instance)

    def last(self) -> tuple[int, ...]:
        """The APIC IDs of the CPUs that go with this kernel's end, the one that it ends on last."""
        return (self.device.info().boot_apic_id,)

    # CPUs

    def give_cpus(self) -> tuple[int, ...]:
        """Every further CPU passes, the last ones excepted; returns the APIC IDs of those that the new kernel runs on.

        What this kernel did not run on waits in the new one's park loop, no more. Raises KupgradeError; the CPU it was
        about is this kernel's again, unless the new one may run on it.
        """
        numbers = {apic_id: number for number, apic_id in cpu.cpuinfo(self.root).apic_ids.items()}
        last, given = self.last(), []
        for apic_id in self.instance.later:
            if apic_id not in last and self._give_cpu(apic_id, numbers.get(apic_id)):
                given.append(apic_id)
        known = spawn_box.slot_ids(self.instance)
        for apic_id in {*cpu_numbers.listed(self.root), *numbers} - {*known, *last}:
            self._still(apic_id, numbers.get(apic_id))
        return tuple(given)

    def _give_cpu(self, apic_id: int, number: int | None) -> bool:
        """`number`: which it is here, None when this kernel does not run on it. Whether the new kernel runs on it."""
        began = self.clock()
        if number is not None:
            cpu.take_offline(number, self.root)
        try:
            wanted = self._park(apic_id) or number is not None
        except KupgradeError:
            self._take_back(apic_id, number)
            raise
        if not wanted:
            return False
        try:
            self.client.ask(standby.ONLINE_CPU, ONLINE_TIMEOUT, apic_id=apic_id, park=self.instance.park)
        except KupgradeError:
            if apic_id in self.waiting():
                self._take_back(apic_id, number)
            raise
        self.told(f"CPU with APIC ID {apic_id}", self.clock() - began)
        return True

    def _park(self, apic_id: int) -> bool:
        """Have it wait in the new kernel's loop; True when it had passed before."""
        try:
            self.device.start(apic_id, self.entry, foreign=True)
        except KernelError as error:
            if error.errno != errno.EALREADY:
                raise
            return True
        self._await_parked(apic_id)
        return False

    def _await_parked(self, apic_id: int) -> None:
        deadline = self.clock() + PARK_PATIENCE
        while apic_id not in self.waiting():
            if self.clock() > deadline:
                raise KupgradeError(
                    f"The CPU with APIC ID {apic_id} does not wait for its new kernel", "it was started"
                )
            self.pause(POLL)

    def _take_back(self, apic_id: int, number: int | None) -> None:
        with contextlib.suppress(KernelError):  # what is told is the first error
            self.device.stop(apic_id, foreign=True)
            if number is not None:
                cpu.bring_online(number, self.root)

    def _still(self, apic_id: int, number: int | None) -> None:
        """A CPU that the new kernel does not know must not run on in memory that will not be this kernel's."""
        if number is not None:
            cpu.take_offline(number, self.root)
        try:
            self.device.stop(apic_id, foreign=True)
        except KernelError as error:
            if error.errno not in (errno.ENODEV, errno.EPERM):
                raise

    # Memory, buses, the end

    def legacy(self) -> Legacy:
        """What the new kernel comes into by this one's end. Raises KupgradeError when it cannot be told."""
        found = memory_blocks.physical_map(self.root)
        if found is None:
            raise KupgradeError("The memory of this kernel is not known", "it hides the addresses of /proc/iomem")
        own = CommandLine.parse(read_text(self.root / "proc/cmdline")).get(BOX_PARAMETER)
        own_box: MemoryRange | None = parse_range(own) if own is not None else None
        memory = inheritance.passing(found.ram, own_box, self.instance.box)
        return Legacy(self.instance.park, self.last(), memory)

    def promise(self) -> Legacy:
        """The new kernel knows what to do once this one is gone. May be done again."""
        found = self.legacy()
        self.client.ask(standby.INHERIT, legacy=encode(found))
        return found

    def give_buses(self, movables: Sequence[Movable], first_number: int) -> None:
        """The devices stand still here and the new kernel finds them.

        Raises KupgradeError, and nothing passed; only where its agent said nothing at all they stay still, for the new
        kernel may drive them.
        """
        if not movables:
            return
        began = self.clock()
        table = buses.table(movables, first_number, self.root)
        buses.keep_awake(movables, self.root)
        buses.quiesce(self.device, movables)
        try:
            self.client.ask(standby.LOAD_SSDT, TABLE_TIMEOUT, table=base64.b64encode(table).decode())
        except AgentError:  # it answered: it does not drive them
            buses.resume(self.device, movables)
            raise
        self.told(f"{len(movables)} buses", self.clock() - began)

    def leave(self) -> NoReturn:
        """This kernel ends. Raises KernelError, and then nothing was done."""
        self.device.leave(self.entry)
        raise KupgradeError("This kernel did not end", "KSPAWN_LEAVE returned")


def retire(
    device: Kspawn,
    instance: Instance,
    client: StandbyClient,
    ports: Sequence[PciAddress] = (),
    first_number: int = 1,
    root: Path = Path("/"),
    told: Told = _untold,
) -> NoReturn:
    """Pass on all that is left and end this kernel; nothing is synced. Returns never.

    `ports`: of the buses that have not passed; `first_number`: of their PCI segments, as in buses.table. `told` hears
    of each part. Raises KupgradeError with this kernel alive; all may be tried again, with ports that have not passed.
    """
    retirement = Retirement(device, instance, client, root, told=told)
    movables = buses.find(ports, root)
    began = time.monotonic()
    retirement.give_cpus()
    told("all CPUs but the last", time.monotonic() - began)
    retirement.promise()
    retirement.give_buses(movables, first_number)
    retirement.leave()

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from kupgrade.core import inheritance
from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import cpu, cpu_numbers, memory_blocks
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.machine import buses, spawn_box
from kupgrade.machine.own_park import Loop, own_box
from kupgrade.machine.standby_client import AgentError, StandbyClient
from kupgrade.model import standby
from kupgrade.model.codec import encode
from kupgrade.model.machine import PciAddress
from kupgrade.model.pci import Movable
from kupgrade.model.spawn import Instance
from kupgrade.model.standby import Legacy

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
    def loop(self) -> Loop:
        """Where the new kernel's CPUs wait."""
        return replace(Loop.of(self.device, self.instance), pause=self.pause, clock=self.clock)

    @property
    def own(self) -> Loop | None:
        """Where this kernel's wait, if it was itself spawned."""
        found = Loop.own(self.device, self.root)
        return found and replace(found, pause=self.pause, clock=self.clock)

    def last(self) -> tuple[int, ...]:
        """The APIC IDs of the CPUs that go with this kernel's end: the bootstrap processor, which may get no INIT, and
        the one that this kernel ends on.
        """
        boot = self.device.info().boot_apic_id
        return (boot,) if boot == self.instance.bsp else (self.instance.bsp, boot)

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
        except KernelError as error:
            if number is None and error.errno == errno.ENODEV:
                return False  # it is not there at all
            self._take_back(apic_id, number)
            raise
        except KupgradeError:
            self._take_back(apic_id, number)
            raise
        if not wanted:
            return False
        try:
            self.client.ask(standby.ONLINE_CPU, ONLINE_TIMEOUT, apic_id=apic_id, park=self.instance.park)
        except KupgradeError:
            if apic_id in self.loop.waiting():
                self._take_back(apic_id, number)
            raise
        self.told(f"CPU with APIC ID {apic_id}", self.clock() - began)
        return True

    def _park(self, apic_id: int) -> bool:
        """Have it wait in the new kernel's loop; True when it had passed before."""
        try:
            self.device.start(apic_id, self.loop.entry, foreign=True)
        except KernelError as error:
            if error.errno != errno.EALREADY:
                raise
            return True
        self.loop.await_parked(apic_id)
        return False

    def _take_back(self, apic_id: int, number: int | None) -> None:
        with contextlib.suppress(KupgradeError):  # what is told is the first error
            self.device.stop(apic_id, foreign=True)
            if number is not None:
                if (own := self.own) is not None:
                    own.admit(apic_id)
                cpu.bring_online(number, self.root)

    def _still(self, apic_id: int, number: int | None) -> None:
        """A CPU that the new kernel does not know must not run on in memory that will not be this kernel's."""
        if number is not None:
            cpu.take_offline(number, self.root)
        try:
            self.device.stop(apic_id, foreign=True)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise

    # Memory, buses, the end

    def legacy(self) -> Legacy:
        """What the new kernel comes into by this one's end. Raises KupgradeError when it cannot be told."""
        found = memory_blocks.physical_map(self.root)
        if found is None:
            raise KupgradeError("The memory of this kernel is not known", "it hides the addresses of /proc/iomem")
        memory = inheritance.passing(found.ram, own_box(self.root), self.instance.box)
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
        """This kernel ends. Raises KupgradeError, and then nothing was done."""
        number = self._send_bsp()
        try:
            self.device.leave(self.loop.entry)
        except KernelError:
            self._fetch_bsp(number)
            raise
        raise KupgradeError("This kernel did not end", "KSPAWN_LEAVE returned")

    def _send_bsp(self) -> int | None:
        """The bootstrap processor, where it is not the CPU to end on, goes to the new kernel's loop by mail.

        Returns the number that this kernel ran on it by, if it did.
        """
        bsp, own = self.instance.bsp, self.own
        if own is None or self.last()[-1] == bsp or bsp in self.loop.waiting():
            return None
        online = cpu.cpuinfo(self.root).apic_ids
        number = next((number for number, apic_id in online.items() if apic_id == bsp), None)
        if number is not None:
            cpu.take_offline(number, self.root)
        try:
            own.await_parked(bsp)
            own.send(bsp, self.loop)
        except KupgradeError:
            if number is not None and bsp in own.waiting():
                cpu.bring_online(number, self.root)
            raise
        return number

    def _fetch_bsp(self, number: int | None) -> None:
        bsp, own = self.instance.bsp, self.own
        if own is not None and bsp in self.loop.waiting():
            self.loop.fetch(bsp, own)
            if number is not None:
                cpu.bring_online(number, self.root)


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

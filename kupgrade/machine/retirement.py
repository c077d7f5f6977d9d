"""How the old kernel ends in favour of the one beside it: the last buses, word of what it leaves, and then itself.

The CPUs that it runs on go at the very end and all at once. None is taken offline before: with a quiesced disk that may
wait for ever, for what this kernel has still asked of that disk. Every part can be had again after a failure or a kill;
only the last instruction cannot be taken back.
"""

from __future__ import annotations

import base64
import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from kupgrade.core import inheritance
from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import cpu, cpu_numbers, memory_blocks, modules
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.machine import buses
from kupgrade.machine.own_park import Loop, own_box
from kupgrade.machine.standby_client import AgentError, StandbyClient
from kupgrade.model import standby
from kupgrade.model.codec import encode
from kupgrade.model.machine import PciAddress
from kupgrade.model.pci import Movable
from kupgrade.model.spawn import Instance
from kupgrade.model.standby import Legacy

TABLE_TIMEOUT = 30.0  # seconds
KVM = "kvm_intel"
# The firmware lists CPUs that are not there, or that this kernel's APICs do not reach: it never ran on those.
NOT_HERE = (errno.ENODEV, errno.ERANGE)

Told = Callable[[str, float], None]  # a part that is done, and the seconds it took
Passing = Callable[[bool], None]  # True: the buses are about to pass; False: they did not


def _untold(_part: str, _seconds: float) -> None:
    """Nobody listens."""


def _unmarked(_passing: bool) -> None:
    """Nobody remembers."""


class BusesGivenError(KupgradeError):
    """It failed when the buses had passed, or perhaps had: they must not be given again."""


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
    passing: Passing = _unmarked

    @property
    def loop(self) -> Loop:
        """Where the new kernel's CPUs wait."""
        return replace(Loop.of(self.device, self.instance), pause=self.pause, clock=self.clock)

    def settle_cpus(self) -> tuple[int, ...]:
        """CPUs that this kernel does not run on: the new one's wait in its park loop, others are stopped.

        They must not go on in memory that will be overwritten; the bootstrap processor, which may get no INIT, is
        brought online here. Returns the APIC IDs of those that wait. Raises KupgradeError; may be done again.
        """
        online = {*cpu.cpuinfo(self.root).apic_ids.values()}
        if self.instance.bsp not in online:
            number = cpu_numbers.by_apic_id(self.root).get(self.instance.bsp)
            if number is None:
                raise KupgradeError("This kernel cannot end", "it does not know this machine's bootstrap processor")
            cpu.bring_online(number, self.root)
            online.add(self.instance.bsp)
        known = {*self.instance.apic_ids, *self.instance.later}
        for apic_id in sorted({*cpu_numbers.listed(self.root)} - known - online):
            self._try(partial(self.device.stop, apic_id, foreign=True), *NOT_HERE)
        return tuple(each for each in self.instance.later if each not in online and self._park(each))

    def _park(self, apic_id: int) -> bool:
        """False when it is not there at all. One that passed in an earlier try, and perhaps runs there, is left."""
        start = partial(self.device.start, apic_id, self.loop.entry, foreign=True)
        if not self._try(start, *NOT_HERE, errno.EALREADY):
            return apic_id in self.loop.waiting()
        self.loop.await_parked(apic_id)
        return True

    def _try(self, call: Callable[[], None], *fine: int) -> bool:
        try:
            call()
        except KernelError as error:
            if error.errno not in fine:
                raise
            return False
        return True

    def legacy(self) -> Legacy:
        """What the new kernel comes into by this one's end. Raises KupgradeError when it cannot be told."""
        found = memory_blocks.physical_map(self.root)
        if found is None:
            raise KupgradeError("The memory of this kernel is not known", "it hides the addresses of /proc/iomem")
        memory = inheritance.passing(found.ram, own_box(self.root), self.instance.box)
        return Legacy(self.instance.park, tuple(cpu.cpuinfo(self.root).apic_ids.values()), memory)

    def promise(self) -> Legacy:
        """The new kernel knows what to do once this one is gone. May be done again."""
        found = self.legacy()
        self.client.ask(standby.INHERIT, legacy=encode(found))
        return found

    def give_buses(self, movables: Sequence[Movable], first_number: int) -> None:
        """The devices stand still here and the new kernel finds them; those that cannot stay behind.

        Raises KupgradeError, and nothing passed; only where its agent said nothing at all they stay still, for the new
        kernel may drive them: BusesGivenError.
        """
        if not movables:
            return
        began = self.clock()
        buses.table(movables, first_number, self.root)  # what is wrong with it shows here
        buses.keep_awake(movables, self.root)
        movables = self._still(movables)
        if not movables:
            return
        table = buses.table(movables, first_number, self.root)
        self.passing(True)
        try:
            self.client.ask(standby.LOAD_SSDT, TABLE_TIMEOUT, table=base64.b64encode(table).decode())
        except AgentError:  # it answered: it does not drive them
            buses.resume(self.device, movables, self.root)
            self.passing(False)
            raise
        except KupgradeError as error:
            raise BusesGivenError("It is not known whether the last buses have passed", str(error)) from error
        self.told(f"{len(movables)} buses", self.clock() - began)

    def _still(self, movables: Sequence[Movable]) -> Sequence[Movable]:
        """Those whose devices stand still. Whether a driver can do that is known only when it is asked."""
        while movables:
            try:
                buses.quiesce(self.device, movables, self.root)
            except KernelError as error:
                refused = [each for each in movables if error.path in (str(f.address) for f in each.functions)]
                if error.errno != errno.EOPNOTSUPP or not refused:
                    raise
                self.told(f"all but what is behind {refused[0].port.address}: its driver cannot let it go", 0.0)
                movables = [each for each in movables if each not in refused]
            else:
                break
        return movables

    def leave(self) -> NoReturn:
        """This kernel ends. Raises KernelError, and then it runs on.

        From Linux 6.12 on KVM keeps VMX on for as long as it is loaded, which udev does on every Intel machine; then
        no CPU can leave. No file may be needed here: the disk has passed.
        """
        try:
            self.device.leave(self.loop.entry, everyone=True)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
            modules.unload(KVM)
            self.device.leave(self.loop.entry, everyone=True)
        raise KupgradeError("This kernel did not end", "KSPAWN_LEAVE returned")


def retire(
    device: Kspawn,
    instance: Instance,
    client: StandbyClient,
    ports: Sequence[PciAddress] = (),
    first_number: int = 1,
    root: Path = Path("/"),
    told: Told = _untold,
    passing: Passing = _unmarked,
) -> NoReturn:
    """Pass on all that is left and end this kernel; nothing is synced. Returns never.

    `ports`: of the buses that have not passed; `first_number`: of their PCI segments, as in buses.table. `told` hears
    of each part, `passing` before the buses pass, for whoever goes on after a kill. Raises KupgradeError with this
    kernel alive; all may be tried again: after BusesGivenError without ports.
    """
    retirement = Retirement(device, instance, client, root, told=told, passing=passing)
    movables = buses.find(ports, root)
    began = time.monotonic()
    retirement.settle_cpus()
    retirement.promise()
    told("word of what is left", time.monotonic() - began)
    retirement.give_buses(movables, first_number)
    try:
        retirement.leave()
    except KupgradeError as error:
        raise BusesGivenError("This kernel could not end", str(error)) from error

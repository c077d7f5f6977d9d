"""The port `Beside`: the spawner on this machine's /dev/kspawn.

What was taken is noted in /run, which ends with the boot as the taking does: a process that goes on after a kill finds
it there. It is an aid, not the truth: the journal's before-images are what is given back.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host import command, standby
from kupgrade.host.durable import write_durably
from kupgrade.kernel import kspawn
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.libc import read_text
from kupgrade.machine.places import Places
from kupgrade.machine.spawn_box import Blueprint
from kupgrade.machine.spawn_watch import Watch
from kupgrade.machine.spawner import Spawner
from kupgrade.model import standby as words
from kupgrade.model.codec import decode, encode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.machine import CpuSet, MemoryRange
from kupgrade.model.spawn import CpusBefore, GivenCpu, Instance, MemoryBefore, Order, Standby
from kupgrade.steps.ports_beside import SpawnOrder

MODULE = "kspawn"
NOTE = "beside.json"  # in Places.run
ANSWER_TIMEOUT = 5.0  # seconds
FIRST_GENERATION = 1


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken from this kernel for one beside it."""

    cpus: CpusBefore | None = None
    memory: MemoryRange | None = None
    instance: Instance | None = None


@dataclass
class RealBeside:
    """A kernel beside this one. The device stays open once it is used: the guard lives as long as it."""

    places: Places
    _device: Kspawn | None = field(default=None, repr=False)

    @property
    def root(self) -> Path:
        """Of the file system."""
        return self.places.root

    def spawner(self) -> Spawner:
        """On the open device; the guard that it sets lives as long as this object keeps it."""
        if self._device is None:
            self._device = kspawn.open_device(self.root)
        return Spawner(self._device, self.root)

    def _noted(self) -> Taken:
        path = self.places.run / NOTE
        try:
            return decode(Taken, json.loads(path.read_text()), str(path))
        except FileNotFoundError:
            return Taken()

    def _note(self, taken: Taken) -> None:
        write_durably(self.places.run / NOTE, json.dumps(encode(taken)).encode())

    def module_loaded(self) -> bool:
        """Its device is there."""
        return (self.root / kspawn.DEVICE).exists()

    def load_module(self) -> None:
        """modprobe; DKMS has built it."""
        command.run(["modprobe", MODULE])

    def unload_module(self) -> None:
        """Close our own descriptor first: it keeps the module."""
        if self._device is not None:
            self._device.close()
            self._device = None
        if self.module_loaded():
            command.run(["modprobe", "-r", MODULE])

    def cpus_before(self, cpus: Sequence[int]) -> CpusBefore:
        """See the port."""
        return self.spawner().cpus_before(tuple(cpus))

    def take_cpus(self, before: CpusBefore) -> None:
        """See the port."""
        self._note(replace(self._noted(), cpus=before))
        self.spawner().take_cpus(before)

    def give_cpus(self, before: CpusBefore) -> None:
        """See the port."""
        self.spawner().give_cpus(before)

    def cpus_taken(self, before: CpusBefore) -> CpuSet:
        """See the port."""
        return self.spawner().cpus_taken(before)

    def memory_before(self) -> MemoryBefore:
        """See the port."""
        return self.spawner().memory_before()

    def take_memory(self, before: MemoryBefore, size: int) -> MemoryRange:
        """See the port."""
        found = self.spawner().take_memory(before, size)
        self._note(replace(self._noted(), memory=found))
        return found

    def taken_memory(self, before: MemoryBefore, size: int) -> MemoryRange | None:
        """See the port. Two runs cannot be there: what a try leaves behind is given back before the next."""
        found = one_run(self.spawner().memory_taken(before), before.block_size, size)
        if found is not None:
            self._note(replace(self._noted(), memory=found))
        return found

    def give_memory(self, before: MemoryBefore) -> None:
        """See the port."""
        self.spawner().give_memory(before)

    def build_standby(self, release: str, out: str, modules: Sequence[str]) -> int:
        """See the port. Raises KupgradeError when a module that the devices need does not exist for the release."""
        Path(out).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        built = standby.build(KernelRelease(release), Path(out), modules, self.root)
        needed = sorted(set(built.absent) & set(modules))
        if needed:
            raise KupgradeError(
                f"{release} has no module {', '.join(needed)}",
                "a device that passes over needs it",
                "Install the modules package of that kernel",
            )
        return built.size

    def standby_built(self, out: str) -> bool:
        """See the port."""
        return (self.root / out.lstrip("/")).is_file()

    def remove_standby(self, out: str) -> None:
        """See the port."""
        path = self.root / out.lstrip("/")
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def blueprint(self, order: SpawnOrder) -> Instance:
        """See the port. Raises KupgradeError when nothing was taken for it."""
        noted = self._noted()
        if noted.cpus is None or noted.memory is None:
            raise KupgradeError("The new kernel cannot be laid out", "no CPUs or no memory were taken for it")
        return self._lay_out(order, noted.cpus, noted.memory).instance

    def _lay_out(self, order: SpawnOrder, cpus: CpusBefore, memory: MemoryRange) -> Blueprint:
        wanted = Order(
            upgrade=UpgradeId(order.upgrade),
            epoch=order.epoch,
            generation=FIRST_GENERATION,
            kernel=order.kernel,
            initrd=order.initrd,
            cmdline=read_text(self.root / "proc/cmdline").strip(),
            memory=memory,
            window=order.window,
            serial=order.serial,
            extra=order.extra,
        )
        return self.spawner().lay_out(wanted, cpus)

    def spawn(self, order: SpawnOrder, instance: Instance, timeout: float) -> Standby:
        """See the port."""
        spawner = self.spawner()
        with self._started(spawner, order, instance) as watch:
            return watch.await_hello(timeout)

    def launch(self, order: SpawnOrder, instance: Instance, settle: float) -> None:
        """See the port."""
        spawner = self.spawner()
        with self._started(spawner, order, instance) as watch:
            watch.await_settled(settle)

    def runs(self, instance: Instance) -> bool | None:
        """See the port. The guard is armed again, as by `answers`. All CPUs of the other kernel count as started."""
        try:
            spawner = self.spawner()
            spawner.guard(instance)
            if spawner.device.info().nr_started < len(instance.apic_ids):
                return False
            with spawner.watch(instance) as watch:
                watch.check_alive()
        except KernelError:
            return None
        except KupgradeError:
            return False
        return True

    @contextlib.contextmanager
    def _started(self, spawner: Spawner, order: SpawnOrder, instance: Instance) -> Iterator[Watch]:
        """Laid out once more, from the journaled instance alone: it must come out the same. Stopped on an error."""
        given = tuple(GivenCpu(0, apic_id, online=True) for apic_id in instance.apic_ids)
        made = self._lay_out(order, CpusBefore(given, instance.later), instance.box)
        if made.instance != instance:
            raise KupgradeError(
                "The new kernel does not fit where it was to live",
                "its image, initramfs or this host changed",
                "Plan again",
            )
        self._note(replace(self._noted(), instance=instance))
        try:
            spawner.start(made)
            with spawner.watch(instance) as watch:
                yield watch
        except KupgradeError:
            spawner.fence(instance)
            raise

    def answers(self, instance: Instance) -> bool | None:
        """See the port. The guard is armed again: it died with the process that had it.

        Dead, silent, or never started is a no; a device or a window that cannot be had tells nothing.
        """
        try:
            spawner = self.spawner()
            spawner.guard(instance)
            with spawner.watch(instance) as watch:
                watch.client().ask(words.PING, ANSWER_TIMEOUT)
        except KernelError:
            return None
        except KupgradeError:
            return False
        return True

    def started(self) -> tuple[Spawner, Instance]:
        """The spawner and the kernel that it started last. Raises KupgradeError when there is none."""
        instance = self._noted().instance
        if instance is None:
            raise KupgradeError("No kernel was started beside this one", "nothing is noted in /run")
        return self.spawner(), instance

    def fence(self, instance: Instance) -> None:
        """See the port."""
        self.spawner().fence(instance)

    def wipe(self, instance: Instance) -> None:
        """See the port."""
        self.spawner().wipe(instance)


def one_run(blocks: Sequence[int], block_size: int, size: int) -> MemoryRange | None:
    """The blocks as one range of at least `size` bytes; None when they are fewer or not in one piece."""
    ordered = sorted(blocks)
    if not ordered or len(ordered) * block_size < size or ordered[-1] - ordered[0] != len(ordered) - 1:
        return None
    return MemoryRange(ordered[0] * block_size, len(ordered) * block_size)

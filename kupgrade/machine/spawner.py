"""Starts a kernel beside this one, and takes everything back: CPUs, memory, box, the kernel itself.

What was there before is told first (`cpus_before`, `memory_before`), and the whole of the new kernel (`lay_out`), for
the caller to write down; every effect can be had again or undone from that alone, by another process too.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kupgrade.core import blocks
from kupgrade.core.blocks import Attempt, GiveBack, Taken, TakeOffline
from kupgrade.errors import BadInputError, KernelError, KupgradeError, RefusedError
from kupgrade.kernel import acpi, cpu, cpu_numbers, memory_blocks
from kupgrade.kernel.kspawn import Entry, Kspawn
from kupgrade.kernel.shared_window import part_for_channel
from kupgrade.kernel.window_files import wipe
from kupgrade.kernel.window_format import format_window
from kupgrade.machine.own_park import Loop
from kupgrade.machine.spawn_box import Blueprint, lay_out, parked, parts
from kupgrade.machine.spawn_watch import Watch
from kupgrade.model.machine import CpuSet, MemoryRange
from kupgrade.model.memory import BlockState
from kupgrade.model.spawn import BlockBefore, CpusBefore, GivenCpu, Instance, MemoryBefore, Order

PARK_PATIENCE = 5.0  # seconds
POLL = 0.005
GUARDED = 0xFF << 8 * acpi.RESET_REGISTER | 0xFF << 8 * acpi.SLEEP_CONTROL


def _all(calls: Iterable[Callable[[], None]]) -> None:
    """Make every call, then raise the first error: what fails for one CPU or block must not keep others."""
    first: KupgradeError | None = None
    for call in calls:
        try:
            call()
        except KupgradeError as error:
            first = first or error
    if first is not None:
        raise first


@dataclass
class Spawner:
    """`device`: the open /dev/kspawn; a guard lives as long as it."""

    device: Kspawn
    root: Path = Path("/")
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    # CPUs

    def cpus_before(self, first: tuple[int, ...]) -> CpusBefore:
        """The CPUs to be given, in this order, as they are. Raises BadInputError when an APIC ID is not known."""
        topology = cpu.topology(root=self.root)
        given = []
        for number in first:
            each = topology.cpu(number)
            if each.apic_id is None:
                why = "it is offline, and the kernel tells APIC IDs of online CPUs only"
                raise BadInputError(
                    f"CPU {number} cannot be given to another kernel", why, f"Bring CPU {number} online"
                )
            given.append(GivenCpu(number, each.apic_id, each.online))
        known = [each.apic_id for each in topology.cpus if each.number not in first and each.apic_id is not None]
        # Offline ones tell no number; their kernel lists them all the same, and some that its APICs do not reach.
        last = self.device.info().max_apic_id
        listed = {each for each in cpu_numbers.listed(self.root) if each <= last}
        silent = listed - {*known, *(each.apic_id for each in given)}
        return CpusBefore(tuple(given), (*known, *sorted(silent)))

    def take_cpus(self, before: CpusBefore) -> None:
        """This kernel runs on none of them any more. Raises KernelError; those taken until then stay so."""
        for each in before.given:
            if cpu.is_online(each.number, self.root):
                cpu.take_offline(each.number, self.root)

    def give_cpus(self, before: CpusBefore) -> None:
        """Whatever runs on them is stopped; this kernel runs on those that it ran on before."""
        own = Loop.own(self.device, self.root)
        _all(partial(self._give_cpu, each, own) for each in before.given)

    def _give_cpu(self, given: GivenCpu, own: Loop | None) -> None:
        if not cpu.is_online(given.number, self.root):
            self._stop(given.apic_id)
            if given.online:
                if own is not None:
                    own.admit(given.apic_id)
                cpu.bring_online(given.number, self.root)

    def cpus_taken(self, before: CpusBefore) -> CpuSet:
        """Those of them that this kernel does not run on now."""
        return CpuSet(tuple(n for n in before.numbers if not cpu.is_online(n, self.root)))

    # Memory

    def memory_before(self) -> MemoryBefore:
        """Which memory blocks are online, and in which zone."""
        online = (each for each in memory_blocks.blocks(self.root) if each.state is BlockState.ONLINE)
        return MemoryBefore(
            memory_blocks.block_size(self.root),
            tuple(BlockBefore(each.number, each.zones[0] if each.zones else "") for each in online),
        )

    def take_memory(self, before: MemoryBefore, size: int, node: int | None = None) -> MemoryRange:
        """Take one run of blocks of `size` bytes offline; what an earlier try took is used or given back.

        Raises RefusedError with advice when no run can be had (nothing is taken then), KernelError.
        """
        were = {each.number: each.zone for each in before.online}
        now = memory_blocks.blocks(self.root)
        known = [
            replace(each, state=BlockState.ONLINE, zones=(were[each.number],)) for each in now if each.number in were
        ]
        offline = (each.number for each in now if each.number in were and each.state is BlockState.OFFLINE)
        attempt = Attempt(tuple(offline))
        while True:
            match blocks.next_move(known, before.block_size, size, attempt, node=node):
                case TakeOffline(number):
                    try:
                        memory_blocks.take_offline(number, self.root)
                    except KernelError as error:
                        if error.errno == errno.EPERM:
                            raise
                        attempt = attempt.was_refused(number)
                    else:
                        attempt = attempt.took(number)
                case GiveBack(numbers):
                    self._bring_online(before, numbers)
                    attempt = attempt.gave_back(numbers)
                case Taken(range_, _):
                    return range_
                case refusal:
                    raise RefusedError("There is no memory for a kernel beside this one", refusal.fact, refusal.remedy)

    def give_memory(self, before: MemoryBefore) -> None:
        """Every block that was online is online again, in its zone. EBUSY: a CPU was started and not stopped."""
        self._bring_online(before, tuple(each.number for each in before.online))

    def memory_taken(self, before: MemoryBefore) -> tuple[int, ...]:
        """The blocks that were online and are not now."""
        were = {each.number for each in before.online}
        now = memory_blocks.blocks(self.root)
        return tuple(each.number for each in now if each.number in were and each.state is not BlockState.ONLINE)

    def _bring_online(self, before: MemoryBefore, numbers: tuple[int, ...]) -> None:
        wanted = (each for each in before.online if each.number in numbers)
        _all(partial(memory_blocks.bring_online, each.number, each.zone, self.root) for each in wanted)

    # The kernel

    def lay_out(self, order: Order, cpus: CpusBefore) -> Blueprint:
        """Where everything goes; without effect. Raises RefusedError, BadInputError, KernelError."""
        return lay_out(order, cpus, self.device.info(), self.root)

    def start(self, blueprint: Blueprint) -> None:
        """Write the box, park the further CPUs, start the first. What ran there before is stopped first.

        The CPUs and the memory must have been taken. Raises KernelError and KupgradeError; then all CPUs are stopped.
        """
        instance = blueprint.instance
        self.fence(instance)
        # Mapped until it runs: the module keeps the memory from this kernel for as long as a CPU is started in it.
        with self.mapped(instance.box) as memory:
            self._write(blueprint, memory)
            try:
                for apic_id in instance.apic_ids[1:]:
                    self._park(instance, apic_id, memory)
                self.guard(instance)
                entry = Entry(blueprint.box.entry, instance.page_tables, blueprint.box.zero_page)
                self.device.start(instance.apic_ids[0], entry)
            except KupgradeError:
                self.fence(instance)
                raise

    def _write(self, blueprint: Blueprint, memory: memoryview) -> None:
        base = blueprint.instance.box.start
        wipe(memory[: blueprint.box.ram.start - base])
        for part in parts(blueprint):
            memory[part.address - base : part.address - base + len(part.content)] = part.content
        window = part_for_channel(blueprint.instance.window)
        format_window(memory[window.start - base : window.end - base], blueprint.instance.upgrade)

    def _park(self, instance: Instance, apic_id: int, memory: memoryview) -> None:
        self.device.start(apic_id, Entry(instance.park, instance.page_tables))
        deadline = self.clock() + PARK_PATIENCE
        while apic_id not in parked(memory, instance):
            if self.clock() > deadline:
                raise KupgradeError(f"The CPU with APIC ID {apic_id} does not wait for its kernel", "it was started")
            self.pause(POLL)

    def guard(self, instance: Instance) -> None:
        """From now on a reset or power-off that the new kernel wants stops its CPUs instead of the machine.

        As long as the device is open: another process has to call this again. Done as well when it is so.
        """
        try:
            self.device.guard(instance.registers, GUARDED, instance.apic_ids)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise

    def fence(self, instance: Instance, further: Iterable[int] = ()) -> None:
        """Stop it, whatever it does. Done as well when it is stopped, or its CPUs were given back.

        `further`: APIC IDs of CPUs that it was given after its start.
        """
        self.device.disarm()
        _all(partial(self._stop, apic_id) for apic_id in (*instance.apic_ids, *further))

    def _stop(self, apic_id: int) -> None:
        try:
            self.device.stop(apic_id)
        except KernelError as error:
            if error.errno != errno.EBUSY:  # online here: nothing else runs on it
                raise

    def wipe(self, instance: Instance) -> None:
        """Overwrite the box: it held secrets of processes. The kernel in it must have been fenced."""
        with self.mapped(instance.box) as memory:
            wipe(memory)

    def watch(self, instance: Instance) -> Watch:
        """An eye on it, and the talk with its agent; the caller closes it."""
        return Watch.open(self.device, instance, self.pause, self.clock)

    @contextlib.contextmanager
    def mapped(self, where: MemoryRange, *, writable: bool = True) -> Iterator[memoryview]:
        """Physical memory for a while. Views of it must be released before the end."""
        mapping = self.device.map(where.start, where.size, writable=writable)
        with contextlib.closing(mapping), memoryview(mapping) as view:
            yield view

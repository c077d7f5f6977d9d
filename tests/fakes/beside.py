"""A model of CPUs, memory blocks and one kernel beside another, behind the port of kupgrade/steps/ports_beside.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kupgrade.errors import KupgradeError
from kupgrade.model.ids import UpgradeId
from kupgrade.model.machine import CpuSet, MemoryRange
from kupgrade.model.spawn import BlockBefore, CpusBefore, GivenCpu, Instance, MemoryBefore, Standby
from kupgrade.steps.ports_beside import SpawnOrder

BLOCK = 128 << 20


def nothing(_label: str) -> None:
    """No fault."""


@dataclass
class FakeBeside:
    """`tick` is called before each single effect. `violations` lists what must never happen."""

    tick: Callable[[str], None] = nothing
    silent: bool = False  # the new kernel never says hello
    release: str = ""  # what it says it is; empty: what was ordered
    loaded: bool = False
    online: set[int] = field(default_factory=lambda: {0, 1, 2, 3})
    blocks: set[int] = field(default_factory=lambda: set(range(2, 32)))
    refusing: frozenset[int] = frozenset({30})  # blocks that cannot go offline
    built: set[str] = field(default_factory=set)
    running: dict[int, str] = field(default_factory=dict)  # APIC ID -> upgrade
    secrets: bool = False
    violations: list[str] = field(default_factory=list)

    def module_loaded(self) -> bool:
        return self.loaded

    def load_module(self) -> None:
        self.tick("load module")
        self.loaded = True

    def unload_module(self) -> None:
        self.tick("unload module")
        if self.running:
            self.violations.append("the module was unloaded while a CPU runs another kernel")
        self.loaded = False

    def cpus_before(self, cpus: Sequence[int]) -> CpusBefore:
        given = tuple(GivenCpu(n, 2 * n, n in self.online) for n in cpus)
        return CpusBefore(given, tuple(2 * n for n in range(4) if n not in cpus))

    def take_cpus(self, before: CpusBefore) -> None:
        for each in before.given:
            self.tick(f"offline {each.number}")
            self.online.discard(each.number)

    def give_cpus(self, before: CpusBefore) -> None:
        for each in before.given:
            if each.online:
                self.tick(f"online {each.number}")
                self.running.pop(each.apic_id, None)
                self.online.add(each.number)

    def cpus_taken(self, before: CpusBefore) -> CpuSet:
        return CpuSet(tuple(n for n in before.numbers if n not in self.online))

    def memory_before(self) -> MemoryBefore:
        return MemoryBefore(BLOCK, tuple(BlockBefore(n, "Movable") for n in sorted(self.blocks)))

    def take_memory(self, before: MemoryBefore, size: int) -> MemoryRange:
        if (found := self.taken_memory(before, size)) is not None:
            return found
        self.give_memory(before)
        count, run = size // BLOCK, list[int]()
        for number in sorted((each.number for each in before.online), reverse=True):
            self.tick(f"offline block {number}")
            if number in self.refusing:
                for each in run:
                    self.tick(f"online block {each}")
                    self.blocks.add(each)
                run = []
                continue
            self.blocks.discard(number)
            run.append(number)
            if len(run) == count:
                return MemoryRange(number * BLOCK, size)
        raise KupgradeError("There is no memory")

    def taken_memory(self, before: MemoryBefore, size: int) -> MemoryRange | None:
        gone = sorted({each.number for each in before.online} - self.blocks)
        if len(gone) * BLOCK < size or gone[-1] - gone[0] != len(gone) - 1:
            return None
        return MemoryRange(gone[0] * BLOCK, len(gone) * BLOCK)

    def give_memory(self, before: MemoryBefore) -> None:
        for each in before.online:
            if each.number not in self.blocks:
                self.tick(f"online block {each.number}")
                if self.running:
                    self.violations.append("memory came back while another kernel runs in it")
                if self.secrets:
                    self.violations.append("memory came back with what the other kernel left in it")
                self.blocks.add(each.number)

    def build_standby(self, release: str, out: str, modules: Sequence[str]) -> int:
        self.tick("build")
        self.built.add(out)
        return 100

    def standby_built(self, out: str) -> bool:
        return out in self.built

    def remove_standby(self, out: str) -> None:
        self.tick("remove")
        self.built.discard(out)

    def blueprint(self, order: SpawnOrder) -> Instance:
        gone = sorted(set(range(2, 32)) - self.blocks)
        whole = MemoryRange(gone[0] * BLOCK, len(gone) * BLOCK)
        part = MemoryRange(whole.start, BLOCK)
        given, rest = tuple(2 * n for n in order.cpus), tuple(2 * n for n in range(4) if n not in order.cpus)
        return Instance(UpgradeId(order.upgrade), order.epoch, 1, whole, part, part, None, 0, 0, 0, given, rest, 0)

    def spawn(self, order: SpawnOrder, instance: Instance, timeout: float) -> Standby:
        self.fence(instance)
        for apic_id in instance.apic_ids:
            self.tick(f"start {apic_id}")
            if apic_id // 2 in self.online:
                self.violations.append(f"CPU {apic_id // 2} was started while this kernel runs on it")
            if any(n in self.blocks for n in range(instance.box.start // BLOCK, instance.box.end // BLOCK)):
                self.violations.append("a kernel was started in memory that this one uses")
            self.running[apic_id] = order.upgrade
            self.secrets = True
        if self.silent:
            self.fence(instance)
            raise KupgradeError("The new kernel did not answer", f"waited {timeout:g} s")
        return Standby("boot-new", self.release or order.release, 4.0)

    def launch(self, order: SpawnOrder, instance: Instance, settle: float) -> None:
        try:
            self.spawn(order, instance, settle)
        finally:
            self.tick("settled")

    def runs(self, instance: Instance) -> bool | None:
        return self.answers(instance)

    def answers(self, instance: Instance) -> bool | None:
        return set(instance.apic_ids) <= set(self.running) and not self.silent

    def fence(self, instance: Instance) -> None:
        for apic_id in instance.apic_ids:
            if apic_id in self.running:
                self.tick(f"stop {apic_id}")
                del self.running[apic_id]

    def wipe(self, instance: Instance) -> None:
        self.tick("wipe")
        if self.running:
            self.violations.append("memory was overwritten while a kernel runs in it")
        self.secrets = False

"""Preparing a kernel beside this one: module, CPUs, memory, standby initramfs, and the kernel itself.

All of it is scope BOOT (but the initramfs, a file): a restart of the machine gives CPUs and memory back by itself and
ends the other kernel. Nothing here is noticed by a workload, but for the CPUs and the memory that it has to share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.spawn import CpusBefore, Instance, MemoryBefore
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports_beside import Beside


class HasBeside(Protocol):
    """A host that can start a kernel beside its own."""

    beside: Beside


@dataclass(frozen=True, slots=True)
class ModuleWas:
    """Whether kspawn was loaded already; then it is not ours to unload."""

    loaded: bool


@register
@dataclass(frozen=True, slots=True)
class LoadSpawnModule:
    """Loads kspawn, the mechanism for everything that follows."""

    kind: ClassVar[str] = "load-spawn-module"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = ModuleWas

    def describe(self) -> str:
        """One clause."""
        return "load the kernel module kspawn"

    def describe_undo(self) -> str:
        """One clause."""
        return "unload it, if it was not loaded before"

    def observe(self, host: HasBeside) -> ModuleWas:
        """Loaded or not."""
        return ModuleWas(host.beside.module_loaded())

    def do(self, host: HasBeside, before: ModuleWas) -> None:
        """Load."""
        host.beside.load_module()

    def undo(self, host: HasBeside, before: ModuleWas, context: UndoContext) -> None:
        """Unload."""
        if not before.loaded:
            host.beside.unload_module()

    def verify(self, host: HasBeside, before: ModuleWas) -> Verdict:
        """Its device is there."""
        return Verdict.DONE if host.beside.module_loaded() else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class TakeCpus:
    """Takes CPUs offline for the new kernel. The before-image holds their APIC IDs, which offline CPUs do not tell."""

    kind: ClassVar[str] = "take-cpus"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = CpusBefore
    cpus: tuple[int, ...]  # in the order in which the new kernel gets them, the one that boots it first

    def describe(self) -> str:
        """One clause."""
        return f"free CPU {', '.join(map(str, self.cpus))} for the new kernel"

    def describe_undo(self) -> str:
        """One clause."""
        return "stop whatever runs there and bring those online that were"

    def observe(self, host: HasBeside) -> CpusBefore:
        """Online or not, and their APIC IDs."""
        return host.beside.cpus_before(self.cpus)

    def do(self, host: HasBeside, before: CpusBefore) -> None:
        """Offline."""
        host.beside.take_cpus(before)

    def undo(self, host: HasBeside, before: CpusBefore, context: UndoContext) -> None:
        """As they were."""
        host.beside.give_cpus(before)

    def verify(self, host: HasBeside, before: CpusBefore) -> Verdict:
        """This kernel runs on none of them."""
        taken = host.beside.cpus_taken(before)
        return Verdict.DONE if taken == before.numbers else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class TakeMemory:
    """Takes one run of memory blocks offline. Which one turns out in the doing: the before-image names all online ones.

    `size`: bytes, whole memory blocks.
    """

    kind: ClassVar[str] = "take-memory"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = MemoryBefore
    size: int

    def describe(self) -> str:
        """One clause."""
        return f"free {self.size >> 20} MiB of memory for the new kernel"

    def describe_undo(self) -> str:
        """One clause."""
        return "bring every block online that was"

    def observe(self, host: HasBeside) -> MemoryBefore:
        """Which blocks are online, and in which zone."""
        return host.beside.memory_before()

    def do(self, host: HasBeside, before: MemoryBefore) -> Figures:
        """Offline, run by run, until one is free as a whole."""
        found = host.beside.take_memory(before, self.size)
        return {"base": found.start, "bytes": found.size}

    def undo(self, host: HasBeside, before: MemoryBefore, context: UndoContext) -> None:
        """As it was."""
        host.beside.give_memory(before)

    def verify(self, host: HasBeside, before: MemoryBefore) -> Verdict:
        """That much is offline, in one piece."""
        found = host.beside.taken_memory(before, self.size)
        return Verdict.DONE if found is not None else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class BuildStandby:
    """Builds the initramfs in which the new kernel waits. `modules`: of the devices it will be given."""

    kind: ClassVar[str] = "build-standby"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    release: str
    out: str
    modules: tuple[str, ...]

    def describe(self) -> str:
        """One clause."""
        return f"build the standby initramfs of {self.release}"

    def describe_undo(self) -> str:
        """One clause."""
        return f"remove {self.out}"

    def observe(self, host: HasBeside) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasBeside, before: Nothing) -> Figures:
        """Build; bytes written."""
        return {"bytes": host.beside.build_standby(self.release, self.out, self.modules)}

    def undo(self, host: HasBeside, before: Nothing, context: UndoContext) -> None:
        """Remove."""
        host.beside.remove_standby(self.out)

    def verify(self, host: HasBeside, before: Nothing) -> Verdict:
        """It is there; written durably, so whole."""
        return Verdict.DONE if host.beside.standby_built(self.out) else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class SpawnKernel:
    """Starts the new kernel on the freed CPUs and memory and waits for the hello of its agent.

    Its before-image is the whole new instance, so that a process that comes later can watch, fence and wipe it.
    Crash windows: killed before the start, nothing runs there, and the start is made again (what runs there is stopped
    first); killed after it, the hello is asked for; a kernel that does not answer in time is stopped by the undo.
    `timeout`: seconds until the hello. `window`: bytes shared by both kernels.
    """

    kind: ClassVar[str] = "spawn-kernel"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Instance
    release: str
    kernel: str
    initrd: str
    upgrade: str
    epoch: int
    cpus: tuple[int, ...]
    memory: int
    window: int
    extra: str
    timeout: float
    serial: int = 0  # number of a serial port for its console; 0: none

    def describe(self) -> str:
        """One clause."""
        return f"start {self.release} beside this kernel and wait until it answers"

    def describe_undo(self) -> str:
        """One clause."""
        return "stop its CPUs and overwrite its memory"

    def observe(self, host: HasBeside) -> Instance:
        """Where it will live; without effect."""
        return host.beside.blueprint(self)

    def do(self, host: HasBeside, before: Instance) -> Figures:
        """Start and wait; seconds from the start to the hello."""
        found = host.beside.spawn(self, before, self.timeout)
        if found.release != self.release:
            raise KupgradeError(
                f"The kernel that was started is not {self.release}", f"it says it is {found.release}", "Plan again"
            )
        return {"hello_seconds": found.seconds, "boot_id": found.boot_id}

    def undo(self, host: HasBeside, before: Instance, context: UndoContext) -> None:
        """Fence first: nothing may run in memory that is overwritten."""
        host.beside.fence(before)
        host.beside.wipe(before)

    def verify(self, host: HasBeside, before: Instance) -> Verdict:
        """It answers now, and is the instance that was started."""
        match host.beside.answers(before):
            case True:
                return Verdict.DONE
            case False:
                return Verdict.NOT_DONE
        return Verdict.UNKNOWN

"""In the new kernel, after the commit: the disk, the system, the units, and what the old kernel still has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Workload
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports import Units
from kupgrade.steps.ports_handover import Takeover


class HasTakeover(Protocol):
    """A host that came up beside another kernel."""

    takeover: Takeover


class HasUnits(HasTakeover, Protocol):
    """The same, when its init system is asked."""

    units: Units


def _verdict(answer: bool | None) -> Verdict:
    if answer is None:
        return Verdict.UNKNOWN
    return Verdict.DONE if answer else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class TakeDisk:
    """The first write to what the old kernel has mounted. The flag that says so comes before it.

    Crash windows: before the flag the old kernel takes everything back; after it the old kernel is dead, and a new
    kernel that dies is a crash of the host. What was written since the handover is merged before anything is thawed.
    """

    kind: ClassVar[str] = "take-disk"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing

    def describe(self) -> str:
        """One clause."""
        return "tell the old kernel that it is committed, then write to the disk itself"

    def describe_undo(self) -> str:
        """One clause."""
        return "none: from here on the old kernel never runs on"

    def observe(self, host: HasTakeover) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasTakeover, before: Nothing) -> Figures:
        """Flag, merge."""
        return {"merged_megabytes": host.takeover.take_disk()}

    def undo(self, host: HasTakeover, before: Nothing, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasTakeover, before: Nothing) -> Verdict:
        """The root file system lies on the disk."""
        return _verdict(host.takeover.disk_taken())


@register
@dataclass(frozen=True, slots=True)
class StartSystem:
    """The first process becomes the host's own init, while the workloads run. `timeout`: seconds."""

    kind: ClassVar[str] = "start-system"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]
    timeout: float

    def describe(self) -> str:
        """One clause."""
        return "start the host's init system around the running workloads"

    def describe_undo(self) -> str:
        """One clause."""
        return "none"

    def observe(self, host: HasTakeover) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasTakeover, before: Nothing) -> None:
        """Start, wait."""
        host.takeover.start_system(self.workloads, self.timeout)

    def undo(self, host: HasTakeover, before: Nothing, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasTakeover, before: Nothing) -> Verdict:
        """It answers."""
        return Verdict.DONE if host.takeover.system_runs() else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class AdoptUnits:
    """Each restored tree becomes its unit's again: same main process, its cgroup, its journal. `timeout`: seconds."""

    kind: ClassVar[str] = "adopt-units"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]
    timeout: float

    def describe(self) -> str:
        """One clause."""
        return "give " + ", ".join(w.unit or w.name for w in self.workloads) + " their restored processes"

    def describe_undo(self) -> str:
        """One clause."""
        return "none"

    def observe(self, host: HasTakeover) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasTakeover, before: Nothing) -> None:
        """Adopt; raises when a unit did not."""
        host.takeover.adopt(self.workloads, self.timeout)

    def undo(self, host: HasTakeover, before: Nothing, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasUnits, before: Nothing) -> Verdict:
        """Each unit has its process for a main process."""
        return _verdict(not any(host.units.adopted(each) for each in self.workloads))


@register
@dataclass(frozen=True, slots=True)
class RetireOld:
    """The old kernel gives CPUs, memory and the devices behind `ports`, and ends. `timeout`: seconds.

    One that does not (it may have crashed since) keeps what it has until the machine is restarted: said, not fatal.
    With it goes the guard that takes a reset for a wish to be stopped: then kernel.panic is the host's own again.
    """

    kind: ClassVar[str] = "retire-old"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    ports: tuple[str, ...]
    timeout: float
    panic: int  # kernel.panic of the old kernel, seconds

    def describe(self) -> str:
        """One clause."""
        return "take over the remaining CPUs, memory and devices; the old kernel ends"

    def describe_undo(self) -> str:
        """One clause."""
        return "none"

    def observe(self, host: HasTakeover) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasTakeover, before: Nothing) -> Figures:
        """Ask for it, wait."""
        return host.takeover.retire(self.ports, self.timeout, self.panic)

    def undo(self, host: HasTakeover, before: Nothing, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasTakeover, before: Nothing) -> Verdict:
        """What was gained stands in the figures; an old kernel that did not leave is no reason to stop here."""
        return Verdict.DONE

"""The blackout begins and, on the way back, ends here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Workload
from kupgrade.steps.base import UndoContext, register
from kupgrade.steps.ports import Checkpoints, Freezer


class HasFreezer(Protocol):
    """A host with the cgroup freezer and restored copies."""

    freezer: Freezer
    checkpoints: Checkpoints


@dataclass(frozen=True, slots=True)
class WasFrozen:
    """Workloads that somebody had frozen before us."""

    names: tuple[str, ...]


@register
@dataclass(frozen=True, slots=True)
class Freeze:
    """Freezes every workload's cgroup; signals none of its processes."""

    kind: ClassVar[str] = "freeze"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = WasFrozen
    workloads: tuple[Workload, ...]

    def describe(self) -> str:
        """One clause."""
        return "freeze " + ", ".join(w.name for w in self.workloads)

    def describe_undo(self) -> str:
        """One clause."""
        return "thaw them (after a restart: the restored copies)"

    def observe(self, host: HasFreezer) -> WasFrozen:
        """A workload that is already frozen is somebody else's business: refused."""
        frozen = tuple(w.name for w in self.workloads if host.freezer.frozen(w) is not False)
        if frozen:
            raise KupgradeError(f"{frozen[0]} is already frozen, or that cannot be told", "somebody else froze it")
        return WasFrozen(frozen)

    def do(self, host: HasFreezer, before: WasFrozen) -> None:
        """Freeze, the last to be started first: nobody waits for an answer of one that stands still already."""
        for workload in reversed(self.workloads):
            host.freezer.freeze(workload)

    def undo(self, host: HasFreezer, before: WasFrozen, context: UndoContext) -> None:
        """Thaw the originals, or the copies restored by the undo of the dump. One that does not keeps no other back."""
        if context.same_boot:
            failed: KupgradeError | None = None
            for workload in self.workloads:
                try:
                    host.freezer.thaw(workload)
                except KupgradeError as error:
                    failed = failed or error
            if failed is not None:
                raise failed
        elif host.checkpoints.restored(self.workloads):
            host.checkpoints.thaw_restored(self.workloads)

    def verify(self, host: HasFreezer, before: WasFrozen) -> Verdict:
        """Each cgroup says frozen."""
        states = [host.freezer.frozen(w) for w in self.workloads]
        if None in states:
            return Verdict.UNKNOWN
        return Verdict.DONE if all(states) else Verdict.NOT_DONE

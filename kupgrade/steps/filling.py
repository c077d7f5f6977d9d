"""Memory that workloads get while they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Workload
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports import Checkpoints


class HasFilling(Protocol):
    """A host that restored workloads without their memory."""

    checkpoints: Checkpoints


@register
@dataclass(frozen=True, slots=True)
class FillMemory:
    """Waits until workloads that were restored without their memory have all of it: images are needed until then.

    Crash windows: it only asks. Whoever fills is nobody's child, so a worker that is killed asks again. Memory that
    cannot be filled ends its workload before it could be read as zeros.
    """

    kind: ClassVar[str] = "fill-memory"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]

    def describe(self) -> str:
        """One clause."""
        return "wait until the workloads' memory is filled from the images, while they run"

    def describe_undo(self) -> str:
        """One clause."""
        return "none"

    def observe(self, host: HasFilling) -> Nothing:
        """Nothing to remember."""
        return Nothing()

    def do(self, host: HasFilling, before: Nothing) -> Figures:
        """Wait."""
        return host.checkpoints.await_filled(self.workloads)

    def undo(self, host: HasFilling, before: Nothing, context: UndoContext) -> None:
        """Irreversible; never called."""

    def verify(self, host: HasFilling, before: Nothing) -> Verdict:
        """Nothing waits for an image."""
        match host.checkpoints.filled(self.workloads):
            case True:
                return Verdict.DONE
            case False:
                return Verdict.NOT_DONE
        return Verdict.UNKNOWN

"""Starting a kernel beside this one in which no agent of ours is: nobody says hello, so less can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.spawn import Instance
from kupgrade.steps.base import Figures, UndoContext, register
from kupgrade.steps.ports_beside import SilentlyBeside


class HasBeside(Protocol):
    """A host that can start a kernel beside its own."""

    beside: SilentlyBeside


@register
@dataclass(frozen=True, slots=True)
class StartKernel:
    """Starts a kernel with an initrd of the operator's, and looks for `settle` seconds whether it ends at once.

    Its before-image is the whole instance, as that of spawn-kernel. Crash windows: killed before the start, nothing
    runs there and it is started again (what runs there is stopped first); killed after it, its CPUs are started.
    """

    kind: ClassVar[str] = "start-kernel"
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
    settle: float
    serial: int = 0

    def describe(self) -> str:
        """One clause."""
        return f"start {self.release} beside this kernel with {self.initrd}, without an agent in it"

    def describe_undo(self) -> str:
        """One clause."""
        return "stop its CPUs and overwrite its memory"

    def observe(self, host: HasBeside) -> Instance:
        """Where it will live; without effect."""
        return host.beside.blueprint(self)

    def do(self, host: HasBeside, before: Instance) -> Figures:
        """Start it and look at it for a while."""
        host.beside.launch(self, before, self.settle)
        return {"watched": self.settle}

    def undo(self, host: HasBeside, before: Instance, context: UndoContext) -> None:
        """Fence first: nothing may run in memory that is overwritten."""
        host.beside.fence(before)
        host.beside.wipe(before)

    def verify(self, host: HasBeside, before: Instance) -> Verdict:
        """Its CPUs are started, and nothing says that it ended. Whether it is well nobody can tell."""
        match host.beside.runs(before):
            case True:
                return Verdict.DONE
            case False:
                return Verdict.NOT_DONE
        return Verdict.UNKNOWN

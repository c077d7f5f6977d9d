"""The initrd of the crossing: written beforehand, removed after the commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.steps.base import Nothing, UndoContext, register
from kupgrade.steps.ports import Crossing


class HasCrossing(Protocol):
    """A host with kexec."""

    crossing: Crossing


@register
@dataclass(frozen=True, slots=True)
class StageInitrd:
    """Writes the crossing initrd: the distribution's, then a small archive with our early init.

    The early init keeps the workloads' PIDs free (ns_last_pid) and starts a dead-man timer that resets the machine when
    nobody commits within the deadline, so that a hung user space ends in a boot of the old kernel.
    """

    kind: ClassVar[str] = "stage-initrd"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    initrd: str
    out: str
    pid_floor: int
    deadline: int

    def describe(self) -> str:
        """One clause."""
        return f"build the crossing initrd from {self.initrd} (PIDs below {self.pid_floor} stay free)"

    def describe_undo(self) -> str:
        """One clause."""
        return f"remove {self.out}"

    def observe(self, host: HasCrossing) -> Nothing:
        """Nothing existed before."""
        return Nothing()

    def do(self, host: HasCrossing, before: Nothing) -> None:
        """Build."""
        host.crossing.stage(self.initrd, self.out, self.pid_floor, self.deadline)

    def undo(self, host: HasCrossing, before: Nothing, context: UndoContext) -> None:
        """Remove."""
        host.crossing.unstage(self.out)

    def verify(self, host: HasCrossing, before: Nothing) -> Verdict:
        """Whole."""
        return Verdict.DONE if host.crossing.staged(self.out) else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class UnstageInitrd:
    """Removes the crossing initrd after the commit."""

    kind: ClassVar[str] = "unstage-initrd"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    out: str

    def describe(self) -> str:
        """One clause."""
        return f"remove {self.out}"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed"

    def observe(self, host: HasCrossing) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasCrossing, before: Nothing) -> None:
        """Remove."""
        host.crossing.unstage(self.out)

    def undo(self, host: HasCrossing, before: Nothing, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasCrossing, before: Nothing) -> Verdict:
        """Gone."""
        return Verdict.NOT_DONE if host.crossing.staged(self.out) else Verdict.DONE

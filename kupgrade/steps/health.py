"""The gate before the blackout and the probe before the commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.model.plan import Allowance, Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import FileState, Store, Workload
from kupgrade.steps.base import Nothing, UndoContext, register
from kupgrade.steps.ports import Health


class HasHealth(Protocol):
    """A host that can be asked how its workloads are."""

    health: Health


@register
@dataclass(frozen=True, slots=True)
class Gate:
    """Asks once more before the freeze; an error means no. Changes nothing."""

    kind: ClassVar[str] = "gate"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]
    store: Store
    allowances: tuple[Allowance, ...] = ()

    def describe(self) -> str:
        """One clause."""
        return (
            "ask once more: same processes, room for the images, workloads healthy, within the budget, and the policy:"
            " window, inhibitors"
        )

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed: it changes nothing"

    def observe(self, host: HasHealth) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasHealth, before: Nothing) -> None:
        """Ask."""
        host.health.gate(self.workloads, self.store, self.allowances)

    def undo(self, host: HasHealth, before: Nothing, context: UndoContext) -> None:
        """Nothing to do."""

    def verify(self, host: HasHealth, before: Nothing) -> Verdict:
        """An answer needs no proof."""
        return Verdict.DONE


@dataclass(frozen=True, slots=True)
class FilesWere:
    """Regular files the probed workloads have open for writing, before they run."""

    files: tuple[FileState, ...]


@register
@dataclass(frozen=True, slots=True)
class ProbeWorkloads:
    """Lets each probed workload run behind the lock, in both directions, until its probe answers, then stops it again.

    No packet leaves. What it writes meanwhile can only be taken back for appended files; a file that is changed in
    another way while the probe fails ends with a human, never with a guess. Scope DISK: after a crash in here the old
    kernel takes the appended bytes back before it restores.
    """

    kind: ClassVar[str] = "probe"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = FilesWere
    workloads: tuple[Workload, ...]

    def describe(self) -> str:
        """One clause."""
        return "probe " + ", ".join(f"{w.name} ({w.probe.kind.value})" for w in self.workloads) + " behind the lock"

    def describe_undo(self) -> str:
        """One clause."""
        return "stop them again and cut off what they appended to files"

    def observe(self, host: HasHealth) -> FilesWere:
        """Sizes before anything runs."""
        return FilesWere(tuple(f for w in self.workloads for f in host.health.open_files(w)))

    def do(self, host: HasHealth, before: FilesWere) -> None:
        """Probe each; stop it again whatever the answer was."""
        for workload in self.workloads:
            try:
                host.health.probe(workload)
            finally:
                host.health.pause(workload)

    def undo(self, host: HasHealth, before: FilesWere, context: UndoContext) -> None:
        """Stopped (when this is still the new kernel), then taken back."""
        if context.in_new_kernel:
            for workload in self.workloads:
                host.health.pause(workload)
        host.health.take_back(before.files)

    def verify(self, host: HasHealth, before: FilesWere) -> Verdict:
        """The answer was the effect."""
        return Verdict.DONE

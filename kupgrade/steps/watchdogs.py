"""Watchdogs of units: stopped before their processes stand still, and counting again when they serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Watched, Workload
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.services import HasUnits


@dataclass(frozen=True, slots=True)
class WereWatched:
    """Units that were watched, by what they themselves or their files said."""

    units: tuple[Watched, ...]


def _watch(host: HasUnits, workloads: tuple[Workload, ...], wanted: tuple[Watched, ...]) -> None:
    by_unit = {each.unit: each for each in workloads}
    for each in wanted:
        host.units.watch(by_unit[each.unit], each.seconds)


def _watch_again(host: HasUnits, workloads: tuple[Workload, ...], wanted: tuple[Watched, ...]) -> Figures:
    """One that is not watched then is told: they serve, so it is no reason to call a person."""
    failed = ""
    try:
        _watch(host, workloads, wanted)
    except KupgradeError as error:
        failed = f": {error}"
    left = {each.unit for each in wanted} - {each.unit for each in host.units.watched(workloads)}
    return {"not_watched": " ".join(sorted(left)) + failed} if left else {}


@register
@dataclass(frozen=True, slots=True)
class PauseWatchdogs:
    """Has the service manager wait for no sign of life: it would kill what is frozen, and the signal would be dumped.

    Crash windows: until the freeze a service beats on, and nothing is lost but its watchdog. Undone after the units
    have their own configuration back, in any boot: a restored unit is not watched by itself. Therefore scope DISK.
    """

    kind: ClassVar[str] = "pause-watchdogs"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = WereWatched
    workloads: tuple[Workload, ...]

    def describe(self) -> str:
        """One clause."""
        return f"stop the watchdog of {_named(self.workloads)}"

    def describe_undo(self) -> str:
        """One clause."""
        return "let it count again"

    def observe(self, host: HasUnits) -> WereWatched:
        """As they are watched now."""
        return WereWatched(host.units.watched(self.workloads))

    def do(self, host: HasUnits, before: WereWatched) -> None:
        """Stop."""
        _watch(host, self.workloads, tuple(Watched(each.unit, 0.0) for each in before.units))

    def undo(self, host: HasUnits, before: WereWatched, context: UndoContext) -> Figures:
        """Start."""
        return _watch_again(host, self.workloads, before.units)

    def verify(self, host: HasUnits, before: WereWatched) -> Verdict:
        """Nobody is watched."""
        return Verdict.NOT_DONE if host.units.watched(self.workloads) else Verdict.DONE


@register
@dataclass(frozen=True, slots=True)
class ResumeWatchdogs:
    """After the commit, when memory is all there and the units are their own again: their watchdogs count from now on.

    Scope BOOT: a unit that starts anew, in this boot or another, is watched as its file says.
    """

    kind: ClassVar[str] = "resume-watchdogs"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]

    def describe(self) -> str:
        """One clause."""
        return f"let the watchdog of {_named(self.workloads)} count again"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed"

    def observe(self, host: HasUnits) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasUnits, before: Nothing) -> Figures:
        """Start."""
        planned = tuple(Watched(each.unit, each.watchdog) for each in self.workloads)
        return _watch_again(host, self.workloads, planned)

    def undo(self, host: HasUnits, before: Nothing, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasUnits, before: Nothing) -> Verdict:
        """What was reached stands in the figures."""
        return Verdict.DONE


def _named(workloads: tuple[Workload, ...]) -> str:
    return ", ".join(f"{each.unit} ({each.watchdog:g} s)" for each in workloads)

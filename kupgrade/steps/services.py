"""Units: those not kept are stopped cleanly beforehand, those kept are held for the restorer and released again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Workload
from kupgrade.steps.base import Nothing, UndoContext, register
from kupgrade.steps.ports import Units


class HasUnits(Protocol):
    """A host with systemd."""

    units: Units


@dataclass(frozen=True, slots=True)
class WereActive:
    """Units that were active before."""

    units: tuple[str, ...]


@register
@dataclass(frozen=True, slots=True)
class StopServices:
    """Stops services that are not kept while the kept ones still run, so that the blackout needs no shutdown."""

    kind: ClassVar[str] = "stop-services"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = WereActive
    units: tuple[str, ...]

    def describe(self) -> str:
        """One clause."""
        return "stop cleanly " + (", ".join(self.units) or "nothing (no other service runs)")

    def describe_undo(self) -> str:
        """One clause."""
        return "start again those that ran"

    def observe(self, host: HasUnits) -> WereActive:
        """Only those that run now are started again by the undo."""
        active = set(host.units.active())
        return WereActive(tuple(unit for unit in self.units if unit in active))

    def do(self, host: HasUnits, before: WereActive) -> None:
        """Stop."""
        host.units.stop(before.units)

    def undo(self, host: HasUnits, before: WereActive, context: UndoContext) -> None:
        """Start."""
        if before.units:
            host.units.start(before.units)

    def verify(self, host: HasUnits, before: WereActive) -> Verdict:
        """None of them is active."""
        left = set(before.units) & set(host.units.active())
        return Verdict.NOT_DONE if left else Verdict.DONE


@register
@dataclass(frozen=True, slots=True)
class HoldUnits:
    """Lays the drop-in that makes each kept unit's next start a restore, so that no boot starts it a second time."""

    kind: ClassVar[str] = "hold-units"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]
    upgrade: str
    start_timeout: int  # seconds

    def describe(self) -> str:
        """One clause."""
        return "make the next start of " + ", ".join(w.unit or w.name for w in self.workloads) + " a restore"

    def describe_undo(self) -> str:
        """One clause."""
        return "give the units their own start commands back"

    def observe(self, host: HasUnits) -> Nothing:
        """Somebody else's hold is refused."""
        held = [w.unit for w in self.workloads if host.units.held(w)]
        if held:
            raise KupgradeError(f"{held[0]} is held by another upgrade", "its drop-in zzzz-kupgrade.conf is there")
        return Nothing()

    def do(self, host: HasUnits, before: Nothing) -> None:
        """Lay."""
        for workload in self.workloads:
            host.units.hold(workload, self.upgrade, self.start_timeout)

    def undo(self, host: HasUnits, before: Nothing, context: UndoContext) -> None:
        """Release."""
        host.units.release(self.workloads)

    def verify(self, host: HasUnits, before: Nothing) -> Verdict:
        """All are there."""
        return Verdict.DONE if all(host.units.held(w) for w in self.workloads) else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class ReleaseUnits:
    """After the commit: the units have their own configuration back and keep the restored processes."""

    kind: ClassVar[str] = "release-units"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]

    def describe(self) -> str:
        """One clause."""
        return "give " + ", ".join(w.unit or w.name for w in self.workloads) + " their own configuration back"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed"

    def observe(self, host: HasUnits) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasUnits, before: Nothing) -> None:
        """Release."""
        host.units.release(self.workloads)

    def undo(self, host: HasUnits, before: Nothing, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasUnits, before: Nothing) -> Verdict:
        """No drop-in is left."""
        return Verdict.NOT_DONE if any(host.units.held(w) for w in self.workloads) else Verdict.DONE

"""Units that the policy wants to stand still over the crossing: stopped in their time, and started again afterwards.

Not as other services, which end here and are started as the next boot likes (steps/services.py): nobody can start
these, in no boot, until the kept workloads serve, and then those that ran are started, whether a boot would do that or
not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import StopOrder
from kupgrade.steps.base import Figures, UndoContext, register
from kupgrade.steps.ports_stopping import Stopping
from kupgrade.steps.services import WereActive


class HasStopping(Protocol):
    """A host with a service manager."""

    stopping: Stopping


def _told(failed: tuple[str, ...]) -> Figures:
    return {"not_started": " ".join(failed)} if failed else {}


@register
@dataclass(frozen=True, slots=True)
class StopUnits:
    """Stops units and keeps them down, with what stops with them and what could start them.

    Crash windows: they are kept down first, so that from the intent on no timer, socket or boot starts one again; what
    keeps them down lies on disk, and is the mark of those that ran. Cut off in between, it is done again in the same
    boot, and undone in any: therefore scope DISK, although a stopped unit is nothing that outlives a boot.
    """

    kind: ClassVar[str] = "stop-units"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = WereActive
    orders: tuple[StopOrder, ...]
    upgrade: str

    def describe(self) -> str:
        """One clause."""
        return "stop and keep down " + ", ".join(f"{each.unit} (in {each.timeout:g} s)" for each in self.orders)

    def describe_undo(self) -> str:
        """One clause."""
        return "start again those that ran, in whatever boot that is"

    def observe(self, host: HasStopping) -> WereActive:
        """Who runs; units that another upgrade keeps down are refused."""
        if held := host.stopping.kept_down():
            why = "its drop-in 90-kupgrade-stopped.conf is there"
            remedy = "See kupgrade status; when no upgrade is open remove the drop-in, then systemctl daemon-reload"
            raise KupgradeError(f"{held[0]} is kept down by another upgrade", why, remedy)
        return WereActive(host.stopping.up([each.unit for each in self.orders]))

    def do(self, host: HasStopping, before: WereActive) -> None:
        """Keep down, stop."""
        if before.units:
            host.stopping.keep_down(before.units, self.upgrade)
            host.stopping.stop(self.orders, before.units)

    def undo(self, host: HasStopping, before: WereActive, context: UndoContext) -> Figures:
        """Start; one that cannot be started is told, and no reason to leave the rest undone."""
        return _told(host.stopping.let_go(before.units))

    def verify(self, host: HasStopping, before: WereActive) -> Verdict:
        """Nobody who ran runs, or could be started."""
        down = set(host.stopping.kept_down()) >= set(before.units)
        return Verdict.DONE if down and not host.stopping.up(before.units) else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class StartUnits:
    """After the commit: those that were stopped, and are kept down, are started. Who they are lies on disk.

    Crash windows: started first, and only then no longer kept down, so that a machine that restarts in between still
    knows them. Scope DISK: done in whatever boot the upgrade ends.
    """

    kind: ClassVar[str] = "start-units"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = WereActive
    orders: tuple[StopOrder, ...]

    def describe(self) -> str:
        """One clause."""
        return "start again " + ", ".join(each.unit for each in self.orders) + ", as far as it ran before"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed"

    def observe(self, host: HasStopping) -> WereActive:
        """Whoever is kept down ran before."""
        return WereActive(host.stopping.kept_down())

    def do(self, host: HasStopping, before: WereActive) -> Figures:
        """Start."""
        return _told(host.stopping.let_go(before.units))

    def undo(self, host: HasStopping, before: WereActive, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasStopping, before: WereActive) -> Verdict:
        """Nobody is kept down; one that does not start by now is its own affair, and told."""
        return Verdict.NOT_DONE if host.stopping.kept_down() else Verdict.DONE

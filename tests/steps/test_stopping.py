"""The steps that stop units and start them again."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Plan
from kupgrade.model.record import Outcome, Verdict
from kupgrade.model.workload import StopOrder
from kupgrade.steps.base import UndoContext, load, spec
from kupgrade.steps.services import WereActive
from kupgrade.steps.stopping import StartUnits, StopUnits
from tests.fakes.drive import plan, play
from tests.fakes.drive_spawn import spawn_plan
from tests.fakes.endings import Behaviour
from tests.fakes.stopping import AGENT, BATCH

ORDERS = (StopOrder("a.service", 90.0), StopOrder("b.service", 5.0))


@dataclass
class Stopping:
    """b.service does not run; a.timer starts a.service."""

    running: set[str] = field(default_factory=lambda: {"a.service", "a.timer"})
    down: tuple[str, ...] = ()
    calls: list[str] = field(default_factory=list)
    fails: tuple[str, ...] = ()

    def up(self, units: Any) -> tuple[str, ...]:
        return tuple(sorted(self.running))

    def kept_down(self) -> tuple[str, ...]:
        return self.down

    def keep_down(self, units: Any, upgrade: str) -> None:
        self.calls.append("keep down")
        self.down = tuple(units)

    def stop(self, orders: Any, units: Any) -> None:
        self.calls.append("stop")
        self.running -= set(units)

    def let_go(self, units: Any) -> tuple[str, ...]:
        self.calls.append(f"let go {' '.join(units)}")
        self.running |= set(units) - set(self.fails)
        self.down = ()
        return self.fails


def host(**changes: Any) -> Any:
    return SimpleNamespace(stopping=Stopping(**changes))


def test_units_are_kept_down_before_they_are_stopped() -> None:
    """What starts one goes with it; done twice, and undone in another boot, it ends the same."""
    here, step = host(), StopUnits(ORDERS, "20261121-041503-9f2c1a")
    before = step.observe(here)
    assert before == WereActive(("a.service", "a.timer"))
    assert step.verify(here, before) is Verdict.NOT_DONE
    for _ in range(2):
        step.do(here, before)
        assert step.verify(here, before) is Verdict.DONE
    assert here.stopping.calls[:2] == ["keep down", "stop"]
    here.stopping.running = {"a.service"}  # somebody started it in spite of all
    assert step.verify(here, before) is Verdict.NOT_DONE
    assert step.undo(here, before, UndoContext(same_boot=False, in_new_kernel=False, images_valid=True)) == {}
    assert here.stopping.running == {"a.service", "a.timer"} and not here.stopping.down
    assert load(spec(step)) == step


def test_where_nothing_runs_nothing_is_stopped() -> None:
    """Then systemd is asked for nothing, and nobody is kept down."""
    here, step = host(running=set()), StopUnits(ORDERS, "x")
    before = step.observe(here)
    step.do(here, before)
    assert (here.stopping.calls, step.verify(here, before)) == ([], Verdict.DONE)


def test_units_of_another_upgrade_are_not_touched() -> None:
    """Whoever keeps units down has not ended: to take them for one's own would start or forget them."""
    with pytest.raises(KupgradeError, match="another upgrade"):
        StopUnits(ORDERS, "x").observe(host(down=("a.service",)))


def test_those_that_ran_are_started_after_the_commit() -> None:
    """What is on disk says who; one that cannot be started is told and holds up nothing."""
    here, step = host(running=set(), down=("a.service", "a.timer"), fails=("a.service",)), StartUnits(ORDERS)
    before = step.observe(here)
    assert step.verify(here, before) is Verdict.NOT_DONE
    assert step.do(here, before) == {"not_started": "a.service"}
    assert (here.stopping.calls, step.verify(here, before)) == (["let go a.service a.timer"], Verdict.DONE)
    assert load(spec(step)) == step


@pytest.mark.parametrize("of", [plan(), spawn_plan()], ids=["kexec", "spawn"])
def test_the_order_of_both_engines_is_quiet(of: Plan) -> None:
    """Before other services, memory and the gate, so that nobody waits for a slow stop; let go when all is done."""
    kinds = [each.kind for each in of.steps]
    order = ["stop-units", "stop-services", "pre-dump", "gate", "freeze", "thaw", "release-units", "start-units"]
    assert [kind for kind in dict.fromkeys(kinds) if kind in order] == order


def test_a_unit_that_does_not_stop_costs_no_blackout() -> None:
    """All is taken back before anything was frozen, and all that ran runs."""
    run = play(Behaviour("a unit does not stop", stop_hangs=True), {})
    assert run.state is not None and run.state.outcome is Outcome.ROLLED_BACK
    assert not any(label.startswith("freeze") for label in run.machine.trace)
    assert {AGENT, BATCH} <= run.machine.active and run.machine.boots == 1

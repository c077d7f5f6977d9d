"""The steps that stop the watchdogs of kept units and let them count again."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Plan, Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Watched, Workload
from kupgrade.steps.base import UndoContext, load, spec
from kupgrade.steps.watchdogs import PauseWatchdogs, ResumeWatchdogs, WereWatched
from tests.fakes.drive import plan
from tests.fakes.drive_spawn import spawn_plan

DEMO = Workload("demo", "demo.service", "/demo", 500, (500,), watchdog=30.0)
ELSEWHERE = UndoContext(same_boot=False, in_new_kernel=False, images_valid=True)


@dataclass
class Units:
    """`ended`: the unit does not run, so that nobody watches it, whatever is said; `deaf`: systemd does not listen."""

    seconds: dict[str, float] = field(default_factory=lambda: {"demo.service": 20.0})
    ended: bool = False
    deaf: bool = False

    def watched(self, workloads: Any) -> tuple[Watched, ...]:
        return tuple(Watched(unit, seconds) for unit, seconds in self.seconds.items() if seconds)

    def watch(self, workload: Workload, seconds: float) -> None:
        if self.deaf:
            raise KupgradeError("systemd could not be told of a watchdog")
        self.seconds[workload.unit] = 0.0 if self.ended else seconds


def host(**changes: Any) -> Any:
    return SimpleNamespace(units=Units(**changes))


def test_a_watchdog_stops_and_comes_back_as_it_was() -> None:
    """As the service itself had set it, not as its file says; in another boot, too."""
    here, step = host(), PauseWatchdogs((DEMO,))
    before = step.observe(here)
    assert before == WereWatched((Watched("demo.service", 20.0),))
    assert step.verify(here, before) is Verdict.NOT_DONE
    for _ in range(2):
        step.do(here, before)
        assert step.verify(here, before) is Verdict.DONE
    step.undo(here, before, ELSEWHERE)
    assert here.units.seconds == {"demo.service": 20.0}
    assert load(spec(step)) == step and step.scope is Scope.DISK


def test_after_the_commit_it_counts_as_it_did_when_planned() -> None:
    """A unit that has ended meanwhile is told, and no more: it was watched, or nobody needs it."""
    here, step = host(seconds={}), ResumeWatchdogs((DEMO,))
    assert step.do(here, step.observe(here)) == {}
    assert here.units.seconds == {"demo.service": 30.0}
    gone = host(seconds={}, ended=True)
    assert step.do(gone, step.observe(gone)) == {"not_watched": "demo.service"}
    assert step.verify(gone, step.observe(gone)) is Verdict.DONE
    assert load(spec(step)) == step


def test_a_manager_that_does_not_listen_stops_the_upgrade_and_not_the_way_back() -> None:
    """Before the freeze nothing is lost by going no further; afterwards they serve, and it is told."""
    here, step = host(deaf=True), PauseWatchdogs((DEMO,))
    before = step.observe(here)
    with pytest.raises(KupgradeError):
        step.do(here, before)
    here.units.seconds = {}
    told = step.undo(here, before, ELSEWHERE)
    assert told == {"not_watched": "demo.service: systemd could not be told of a watchdog"}


@pytest.mark.parametrize("of", [plan(), spawn_plan()], ids=["kexec", "spawn"])
def test_nobody_listens_for_signs_of_life_while_there_are_none(of: Plan) -> None:
    """Undone after the units are their own again, resumed after that, too: else systemd takes no word of them."""
    kinds = [each.kind for each in of.steps]
    order = ["pause-watchdogs", "hold-units", "freeze", "thaw", "release-units", "resume-watchdogs", "start-units"]
    assert [kind for kind in kinds if kind in order] == order
    (paused,) = (each for each in of.steps if each.kind == "pause-watchdogs")
    assert [each["name"] for each in paused.params["workloads"]] == ["web"]  # the other one has none

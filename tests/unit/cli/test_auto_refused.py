"""auto: what is refused, what has failed before, and what lies in the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kupgrade.errors import RefusedError
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import BlackoutTerm, Budget, Plan, Refusal
from kupgrade.model.record import RecordKind

from .automation import NEW, NOON, STAGED, Auto, staged
from .conftest import HANDS_OFF, ROLLED_BACK, Event, facts, failed_early


def test_no_rehearsal_is_a_refusal(auto: Auto) -> None:
    """A host that has no laboratory says so, each time."""

    def refuse(plan: Plan) -> tuple[str, str]:
        raise RefusedError("There is no rehearsal on this host", "mmdebstrap is not installed", "Install it")

    auto.policy("rehearse")
    auto.host.change(rehearse=refuse)
    auto.ask(NEW)
    attempt, code = auto.look()
    assert (attempt["verdict"], code) == ("refused", 3) and "mmdebstrap" in attempt["why"]


@pytest.mark.parametrize("mode", ["plan", "stage", "rehearse", "apply"])
def test_what_is_refused_stays_and_is_told_whole(auto: Auto, mode: str) -> None:
    """Every refusal of the planner is in the record; nothing is begun."""
    auto.policy(mode)
    auto.host.refusals = (Refusal("criu is there", "no criu", "Install it"), Refusal("nft is there", "no nft", "x"))
    auto.ask(NEW)
    attempt, code = auto.look()
    assert (attempt["verdict"], code) == ("refused", 3) and "no criu" in attempt["why"] and "no nft" in attempt["why"]
    assert auto.pending == (NEW,) and auto.host.composed.open_state() is None


@pytest.mark.parametrize("mode", ["plan", "stage", "rehearse", "apply"])
def test_over_budget_is_6(auto: Auto, mode: str) -> None:
    """A prediction over its limit is refused with its own code."""
    auto.policy(mode)
    auto.host.plan = replace(auto.host.plan, budgets=(Budget("demo", (BlackoutTerm("dump", 9.0, "x"),), 5.0),))
    auto.ask(NEW)
    attempt, code = auto.look()
    assert (attempt["verdict"], attempt["code"], code) == ("refused", 6, 6) and not auto.rehearsals


def failed(auto: Auto, events: tuple[Event, ...]) -> None:
    auto.policy("apply")
    auto.host.events = events
    auto.ask(NEW)
    assert auto.look()[0]["verdict"] == "started"


def test_what_crossed_and_came_back_is_not_tried_again(auto: Auto) -> None:
    """The memory of bad versions holds for the automation: the request goes, with the way to insist."""
    failed(auto, ((RecordKind.STARTED, 4, {"epoch": 1}), *ROLLED_BACK[1:]))
    attempt, code = auto.look()
    assert (attempt["verdict"], code, auto.pending) == ("nothing", 0, ())
    assert "rolled back before" in attempt["why"] and "--retry-failed" in attempt["why"]


def test_what_failed_before_the_crossing_backs_off(auto: Auto) -> None:
    """Ten minutes later it is not begun again; after the pause it is."""
    failed(auto, failed_early(75))
    auto.now = 1_795_000_100.0 + 60  # when the fake journal ended
    attempt, code = auto.look()
    assert (attempt["verdict"], attempt["next"], code) == ("waits", 1_795_000_100.0 + 3600, 75)
    assert auto.host.calls.count("start-worker") == 1


@pytest.mark.parametrize(
    ("events", "holder", "verdict", "code"),
    [((), 7, "waits", 75), (STAGED, None, "waits", 75), (HANDS_OFF, None, "refused", 5)],
)
def test_beside_an_open_upgrade_nothing_is_begun(
    auto: Auto, events: tuple[Event, ...], holder: int | None, verdict: str, code: int
) -> None:
    """Whoever began it: it goes first; one that needs a person is told as that."""
    auto.policy("apply")
    auto.host.open(*events)
    auto.host.change(holder=lambda path, root: holder)
    auto.ask(NEW)
    attempt, found = auto.look()
    assert (attempt["verdict"], found) == (verdict, code) and auto.host.calls == []


def test_hostile_files_are_told_and_not_acted_on(auto: Auto) -> None:
    """They are in the record and in status; what is good beside them counts."""
    auto.ask(NEW)
    (auto.host.composed.requests.folder / "evil; reboot.json").write_text("{}")
    attempt, _ = auto.look()
    assert attempt["verdict"] == "notified" and len(attempt["ignored"]) == 1
    assert "ignored:" in auto.host.call("status").output


def test_what_was_only_put_away_does_not_back_off(auto: Auto) -> None:
    """A host that changed while an upgrade was held is staged anew at the next look."""
    staged(auto)
    auto.now = NOON + 15 * 3600
    auto.host.change(probe=lambda root, policy: facts(digest="e" * 64))
    auto.host.events = ((RecordKind.FINISHED, None, {"outcome": "rolled-back"}),)
    auto.look()
    assert auto.host.composed.open_state() is None
    again = replace(auto.host.plan, upgrade=UpgradeId("20261122-031503-aaaaaa"), facts_digest="e" * 64)
    auto.host.plan, auto.host.events = again, ()
    attempt, code = auto.look()
    assert (attempt["verdict"], attempt["upgrade"], code) == ("started", str(again.upgrade), 0)

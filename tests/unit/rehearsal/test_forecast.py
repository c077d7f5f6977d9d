"""What a rehearsal of this host says, from what was predicted and what was seen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kupgrade.model.live_images import LiveSeen
from kupgrade.model.plan import BlackoutTerm, Budget, Loss
from kupgrade.model.workload import Fate
from kupgrade.rehearsal import forecast
from kupgrade.rehearsal.forecast import Observed, Workload
from kupgrade.rehearsal.own_inside import Answer, UnitSeen, answer
from kupgrade.rehearsal.own_root import LeftOut

STARTED = Answer("started", "", (), {"warnings": ["no watchdog"]})
WELL = UnitSeen("active (running)", 700, (700, 701), 0, healthy=True)


def record(kind: str, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "step": None, "time": 1.0, "data": data}


COMMITTED = (record("note", blackout={"demo": 12.0}), record("finished", outcome="committed"))
BACK = (record("undo-requested", reason="no room"), record("finished", outcome="rolled-back"))


def observed(plan_with: Any, **changes: Any) -> Observed:
    plan = plan_with(
        old_release="6.12",
        new_release="7.3",
        store="pmem",
        budgets=(Budget("demo", (BlackoutTerm("boot", 3.0, "measured"),), 5.0),),
        losses=(Loss("a pipe", "its other end is elsewhere"),),
    )
    values: dict[str, Any] = {
        "plan": plan,
        "store": "disk",
        "answer": STARTED,
        "journal": COMMITTED,
        "running_release": "7.3",
        "workloads": (Workload("demo", "demo.service", "", 64, WELL, WELL), Workload("x", "", "it does not run here")),
        "slower": 4.0,
        "machine": {"accelerator": "tcg"},
        "differs": ("no network card",),
        "left_out": (LeftOut("/mnt", "nfs"),),
    }
    return Observed(**{**values, **changes})


def test_a_commit_stands_beside_what_was_predicted(plan_with: Any) -> None:
    """The blackout seen there, at this host's speed, and as predicted here; in words, too."""
    told = forecast.forecast(observed(plan_with))
    assert (told["outcome"], told["findings"], told["predicted"]["outcome"]) == ("committed", [], "committed")
    demo, other = told["workloads"]
    assert (demo["predicted_seconds"], demo["blackout_seconds"], demo["scaled_seconds"]) == (3.0, 12.0, 3.0)
    assert demo["kept"] is True
    assert other["left_out"] == "it does not run here"
    said = forecast.text(told)
    assert "demo: predicted here 3 s, stood still 12 s there (3 s by this host's processors alone), PIDs kept" in said
    assert "x: not rehearsed, it does not run here" in said
    assert "no network card" in said
    assert "/mnt: nfs" in said
    assert json.loads(json.dumps(told)) == told


def test_a_blackout_over_its_limit_is_told(plan_with: Any) -> None:
    """Held against this host's limit, which the copy does not have."""
    told = forecast.forecast(observed(plan_with, slower=2.0))
    assert told["workloads"][0]["limit_seconds"] == 5.0
    assert "OVER its limit of 5 s" in forecast.text(told)


@pytest.mark.parametrize(
    ("changes", "outcome", "told"),
    [
        ({"journal": BACK, "running_release": "6.12"}, "rolled-back", []),
        ({"journal": BACK}, "failed", ["7.3 runs there, expected 6.12"]),
        ({"journal": (record("hands-off", reason="two copies"),)}, "hands-off", []),
        ({"journal": (record("planned"),)[:0]}, "failed", ["it did not end in time"]),
        ({"answer": Answer("refused", "x", ({"rule": "r", "fact": "f", "remedy": "m"},), {})}, "refused", []),
        ({"answer": Answer("failed", "no worker", (), {})}, "failed", ["no worker"]),
    ],
)
def test_other_ends_are_told_by_their_names(plan_with: Any, changes: Any, outcome: str, told: list[str]) -> None:
    """Rolled back, refused, in need of a person, or without an end."""
    found = forecast.forecast(observed(plan_with, **changes))
    assert (found["outcome"], found["findings"]) == (outcome, told)
    assert forecast.text(found).startswith(outcome)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (WELL, UnitSeen("active (running)", 900, (900,), 1, healthy=True), "PIDs 700 701 became 900"),
        (WELL, UnitSeen("active (running)", 700, (700, 701), 2, healthy=True), "systemd restarted it 2 times"),
        (WELL, UnitSeen("failed (failed)", 0, (), 0, healthy=None), "its unit is failed (failed) afterwards"),
        (WELL, UnitSeen("active (running)", 700, (700,), 0, healthy=False), "its probe is not answered afterwards"),
        (UnitSeen("failed (x)", 0, (), 0, healthy=None), WELL, "its unit did not start there: failed (x)"),
        (WELL, None, "it could not be asked afterwards"),
    ],
)
def test_a_workload_that_lost_something_is_a_failure(plan_with: Any, before: Any, after: Any, told: str) -> None:
    """However well the upgrade itself ended."""
    workloads = (Workload("demo", "demo.service", "", 64, before, after),)
    found = forecast.forecast(observed(plan_with, workloads=workloads))
    assert (found["outcome"], found["upgrade_outcome"]) == ("failed", "committed")
    assert f"demo: {told}" in found["findings"]


def test_what_is_restarted_need_not_be_the_same_process(plan_with: Any) -> None:
    """Only what the policy keeps is held to its processes; a restarted unit has to run."""
    after = UnitSeen("active (running)", 900, (900,), 0, healthy=True)
    restarted = Workload("demo", "demo.service", "", 64, WELL, after, Fate.RESTART)
    found = forecast.forecast(observed(plan_with, workloads=(restarted,)))
    assert (found["outcome"], found["workloads"][0]["kept"]) == ("committed", None)
    gone = replace(restarted, after=UnitSeen("inactive (dead)", 0, (), 0, healthy=None))
    assert forecast.forecast(observed(plan_with, workloads=(gone,)))["outcome"] == "failed"


def test_a_host_whose_plan_is_refused_needs_no_rehearsal() -> None:
    """The refusals are the forecast."""
    refusal = {"rule": "criu can dump", "fact": "a raw socket", "remedy": "stop it"}
    told = forecast.refused({"what": "The upgrade is refused", "refusals": [refusal]})
    assert told["outcome"] == "refused"
    assert "a raw socket" in forecast.text(told)
    assert "remedy: stop it" in forecast.text(told)


def test_the_answer_of_apply_is_read_out_of_its_lines() -> None:
    """Plan, result and the refusals behind it; other output is no answer."""
    refusal = {"rule": "r", "fact": "f", "remedy": "m"}
    result = {"format": "kupgrade.result/1", "outcome": "refused", "reason": "no", "error": {"refusals": [refusal]}}
    lines = ["warning", json.dumps({"format": "kupgrade.plan/1", "warnings": ["w"]}), json.dumps(result)]
    found = answer("\n".join(lines))
    assert found == Answer("refused", "no", (refusal,), {"format": "kupgrade.plan/1", "warnings": ["w"]})
    assert answer("Segmentation fault\n") is None


@pytest.mark.parametrize(
    ("restored", "changes", "outcome", "told"),
    [
        (True, {}, "committed", ""),
        (False, {}, "rolled-back", "demo, as it runs here: NOT restored: bad size"),
        (None, {}, "failed", "demo, as it runs here: not found out: bad size"),
        (False, {"journal": BACK, "running_release": "6.12"}, "rolled-back", "NOT restored"),
        (None, {"journal": (record("hands-off", reason="two copies"),)}, "hands-off", "not found out"),
        (False, {"running_release": "6.12"}, "failed", "NOT restored"),
    ],
)
def test_what_runs_here_has_a_say(plan_with: Any, restored: bool | None, changes: Any, outcome: str, told: str) -> None:
    """Not restored is a way back, for an upgrade would take it; not found out is no yes; a worse end stays."""
    live = LiveSeen("demo", restored, "" if restored else "bad size", (0.1, 0.7), 3.0 if restored else None, ("cut",))
    found = forecast.forecast(observed(plan_with, live=(live,), **changes))
    assert found["outcome"] == outcome
    assert any(told in each for each in found["findings"]) or (restored and not found["findings"])
    (entry,) = found["live"]
    assert (entry["restored"], entry["pause_seconds"], entry["pauses"]) == (restored, 0.7, [0.1, 0.7])
    said = forecast.text(found)
    assert "it stood still here for 700 ms" in said or "it stood still here for 0.7 s" in said, said
    assert "  - cut" in said


def test_without_a_wish_nothing_is_said_of_images(plan_with: Any) -> None:
    """No entry at all."""
    assert "live" not in forecast.forecast(observed(plan_with))

"""auto: what is made of requests in each mode, and what waits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kupgrade.core.permission import Hindrances
from kupgrade.model.plan import Plan
from kupgrade.model.record import RecordKind
from kupgrade.model.schedule import Terms

from .automation import NEW, NOON, OPEN, RUNNING, SHUT, STAGED, Auto
from .conftest import Event, write


def test_without_requests_nothing_happens(auto: Auto) -> None:
    """No record, no file, no probe."""
    attempt, code = auto.look()
    assert (attempt["verdict"], code, auto.host.calls) == ("nothing", 0, [])
    assert not auto.host.composed.state.path.exists()


def test_notify(auto: Auto) -> None:
    """By default a new kernel is told of: in the journal, at logins, in status; no plan, no worker."""
    auto.ask(NEW, age=1.0)
    attempt, code = auto.look()
    assert (attempt["verdict"], attempt["release"], code) == ("notified", NEW, 0)
    assert auto.host.calls == [] and auto.pending == (NEW,) and NEW in auto.note
    assert NEW in auto.host.call("auto").output
    auto.look()
    (one,) = auto.attempts
    assert one.count == 3


def test_the_others_are_withdrawn_with_their_reason(auto: Auto) -> None:
    """The newest one counts; what runs, is older, gone or superseded goes, once."""
    auto.kernels["6.12.50"] = True
    auto.ask(NEW, RUNNING, "6.1.0", "6.12.50", "6.13.0")
    attempt, _ = auto.look()
    assert {each["release"]: each["why"] for each in attempt["withdrawn"]} == {
        "6.1.0": "6.12.48 runs, which is newer",
        RUNNING: "it runs",
        "6.12.50": "6.12.57 is newer",
        "6.13.0": "it is not installed (any more)",
    }
    assert auto.pending == (NEW,) and auto.look()[0]["withdrawn"] == []


def test_a_request_that_is_fulfilled_goes_with_its_note(auto: Auto) -> None:
    """After the upgrade the kernel runs: nothing is left to be told."""
    auto.ask(NEW)
    auto.look()
    auto.policy("plan")
    auto.look()
    assert auto.host.composed.requests.plan.exists()
    auto.host.change(running_release=lambda: NEW)
    attempt, code = auto.look()
    assert (attempt["verdict"], code, auto.pending, auto.note) == ("nothing", 0, (), "")
    assert not auto.host.composed.requests.plan.exists()


def test_plan(auto: Auto) -> None:
    """A plan is stored and explained; while it is good no other is made."""
    auto.policy("plan")
    auto.ask(NEW)
    output = auto.host.call("auto").output
    path = auto.host.composed.requests.plan
    assert "1. do prepare-store" in output and f"kupgrade apply {path}" in output
    assert json.loads(path.read_text())["new_release"] == NEW and path.stat().st_mode & 0o777 == 0o600
    assert auto.host.composed.open_state() is None


def test_apply_without_windows(auto: Auto) -> None:
    """It begins at once, on the terms of an automatic upgrade, and the worker does the rest."""
    auto.policy("apply")
    auto.host.events = ()
    auto.ask(NEW)
    attempt, code = auto.look()
    assert (attempt["verdict"], attempt["upgrade"], code) == ("started", str(auto.host.plan.upgrade), 0)
    assert auto.host.calls[-1] == "start-worker" and auto.terms == Terms(automatic=True)
    choices = auto.host.calls[0]
    assert (choices["kernel"], choices["retry_failed"]) == (NEW, False)


WAITING: dict[str, tuple[str, Hindrances, str, bool]] = {
    "outside": (SHUT, Hindrances(), "no window is open", True),
    "too late in it": ('[[window]]\nstart = "11:45"\nlength = "15min"\n', Hindrances(), "the next one", True),
    "too short": ('[[window]]\nstart = "11:59"\nlength = "15min"\n', Hindrances(), "may be needed", False),
    "held up": (OPEN, Hindrances(inhibitors=("apt (installing)",)), "apt (installing)", False),
    "somebody is there": (OPEN, Hindrances(users=("ann",)), "logged in: ann", False),
    "unknown": (OPEN, Hindrances(None, (), "no bus"), "unknown: no bus", False),
}


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize("mode", ["apply", "stage"])
def test_what_waits(auto: Auto, name: str, mode: str) -> None:
    """Outside of a window, under somebody's hands or not knowing: not now; the reason and the time are told."""
    windows, found, words, timed = WAITING[name]
    top = 'deadline = "20min"' if name == "too short" else ""
    auto.policy(mode, windows, top)
    auto.host.plan = replace(auto.host.plan, deadline=1200.0 if name == "too short" else 120.0)
    auto.hindrances, auto.host.events = found, STAGED
    auto.ask(NEW)
    attempt, code = auto.look()
    assert words in attempt["why"] and (attempt["next"] is not None) is timed
    if mode == "apply":
        assert (attempt["verdict"], code) == ("waits", 75) and auto.host.composed.open_state() is None
    else:
        assert (attempt["verdict"], code) == ("staged", 0) and auto.terms == Terms(automatic=True, hold=True)
    assert auto.pending == (NEW,) and words in auto.note


def test_the_transaction_is_given_time(auto: Auto) -> None:
    """A kernel noted a minute ago may not be all set up: only notify acts at once."""
    auto.policy("apply")
    auto.ask(NEW, age=60.0)
    attempt, code = auto.look()
    assert (attempt["verdict"], attempt["next"], code) == ("waits", NOON + 240, 75) and auto.host.calls == []


def test_a_kernel_without_an_initrd_waits(auto: Auto) -> None:
    """Its package is not set up yet."""
    auto.policy("apply")
    auto.kernels[NEW] = False
    auto.ask(NEW)
    attempt, code = auto.look()
    assert ("no initrd" in attempt["why"], code, auto.pending) == (True, 75, (NEW,))


@pytest.mark.parametrize(
    ("outcome", "verdict"), [(("committed", ""), "rehearsed"), (("rolled-back", "it panicked"), "failed")]
)
def test_rehearse(auto: Auto, outcome: tuple[str, str], verdict: str) -> None:
    """Once for each request, whatever it came to; the upgrade itself is never begun."""
    auto.policy("rehearse")
    auto.outcome = outcome
    auto.ask(NEW)
    for _ in range(2):
        attempt, code = auto.look()
        assert (attempt["verdict"], code) == (verdict, 0) and outcome[0] in attempt["why"]
    assert len(auto.rehearsals) == 1 and auto.host.composed.open_state() is None
    auto.now += 86400
    auto.ask(NEW, age=600.0)  # the package was installed again
    auto.look()
    assert len(auto.rehearsals) == 2


@pytest.mark.parametrize(
    ("terms", "events", "starts"),
    [
        (Terms(automatic=True), (), True),
        (Terms(automatic=True, hold=True), (), True),
        (Terms(automatic=True), STAGED, True),
        (Terms(automatic=True), STAGED[:1], False),  # somebody stopped it in a step
        (Terms(), (), False),
    ],
)
def test_a_look_that_was_killed_is_made_up_for(
    auto: Auto, terms: Terms, events: tuple[Event, ...], starts: bool
) -> None:
    """What the automation had begun gets its worker; what a person began, or stopped, is left to persons."""
    auto.policy("apply")
    journal = auto.host.composed.state.begin(auto.host.plan, terms)
    write(journal, events)
    journal.close()
    auto.ask(NEW)
    auto.host.events = ()
    attempt, code = auto.look()
    assert (attempt["verdict"], code) == (("started", 0) if starts else ("waits", 75))
    assert auto.host.calls == (["start-worker"] if starts else [])


def test_a_soak_time_without_a_worker_gets_one(auto: Auto) -> None:
    """What is committed is finished: the worker is started again, should it be missing."""
    auto.host.open((RecordKind.COMMITTED, None, {}))
    auto.host.events = ()
    auto.look()
    assert auto.host.calls == ["start-worker"]


def test_requests_of_a_test_host_are_private(auto: Auto, tmp_path: Path, plan_with: Callable[..., Plan]) -> None:
    """The state directory that a hook made is taken by the first upgrade as it is."""
    auto.ask(NEW)
    auto.host.composed.state.begin(plan_with()).close()
    assert auto.pending == (NEW,)

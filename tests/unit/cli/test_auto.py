"""auto: what is made of requests in each mode, what waits, what is refused, what is never done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kupgrade.core.permission import Hindrances
from kupgrade.errors import RefusedError
from kupgrade.model.automation import Verdict
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import BlackoutTerm, Budget, Plan, Refusal
from kupgrade.model.record import RecordKind
from kupgrade.model.schedule import Terms

from .automation import NEW, NOON, OPEN, RUNNING, SHUT, STAGED, Auto, staged
from .conftest import HANDS_OFF, ROLLED_BACK, Event, facts, failed_early, write


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


def test_a_dry_run_touches_nothing(auto: Auto) -> None:
    """It tells what it would do."""
    for mode in ("notify", "plan", "stage", "rehearse", "apply"):
        auto.policy(mode)
        auto.ask(NEW, RUNNING)
        before = auto.host.snapshot()
        attempt, _ = auto.look("-n")
        assert attempt["release"] == NEW and len(attempt["withdrawn"]) == 1
        assert auto.host.snapshot() == before and "start-worker" not in auto.host.calls and not auto.rehearsals


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


def test_hostile_files_are_told_and_not_acted_on(auto: Auto) -> None:
    """They are in the record and in status; what is good beside them counts."""
    auto.ask(NEW)
    (auto.host.composed.requests.folder / "evil; reboot.json").write_text("{}")
    attempt, _ = auto.look()
    assert attempt["verdict"] == "notified" and len(attempt["ignored"]) == 1
    assert "ignored:" in auto.host.call("status").output


def test_status_tells(auto: Auto) -> None:
    """What was asked for, what was decided, why, and when next; as text and as JSON."""
    auto.policy("apply", SHUT)
    auto.ask(NEW)
    auto.look()
    text = auto.host.call("status").output
    for words in ("Automation (apply)", f"requested: {NEW} (debian", "waits", "no window is open", "2026-11-22 02:00"):
        assert words in text
    (value,), _ = auto.host.lines("status")
    assert value["automation"]["mode"] == "apply"
    assert value["automation"]["pending"]["requests"][0]["release"] == NEW
    assert value["automation"]["attempts"][-1]["verdict"] == Verdict.WAITS.value


@pytest.mark.parametrize("what", ["log", "policy", "directory"])
def test_status_survives_damage(auto: Auto, what: str) -> None:
    """What is open is told whatever is wrong with the files of the automation."""
    auto.ask(NEW)
    auto.host.open()
    match what:
        case "log":
            (auto.host.composed.state.path / "automation.json").write_text("{")
        case "policy":
            auto.policy("frobnicate")
        case "directory":
            auto.host.composed.requests.folder.chmod(0o777)
    result = auto.host.call("status")
    assert result.exit_code == 0 and "is planned" in result.output and "Automation: unknown" in result.output


@pytest.mark.parametrize(
    ("words", "found", "code"),
    [
        ((), Hindrances(), 75),
        (("--now",), Hindrances(), 0),
        (("--now",), Hindrances(inhibitors=("apt (installing)",)), 0),
        (("-n",), Hindrances(), 75),
    ],
)
def test_windows_hold_by_hand_too(auto: Auto, words: tuple[str, ...], found: Hindrances, code: int) -> None:
    """Outside of a window apply is 75 and nothing is begun, unless a person says now; the journal knows that."""
    auto.policy("notify", SHUT)
    auto.hindrances, auto.host.events = found, ()
    result = auto.host.call("apply", "--no-wait", *words)
    assert result.exit_code == code, result.output
    state = auto.host.composed.open_state()
    assert (state is not None and state.terms == Terms(at_once=True)) if code == 0 else state is None
    if code:
        assert "no window is open" in result.output and "--now" in result.output


def test_plan_and_policy_check_tell_of_windows(auto: Auto) -> None:
    """A plan may be made at any time, with a warning; the check says when the windows are."""
    auto.policy("apply", SHUT)
    result = auto.host.call("plan")
    assert result.exit_code == 0 and "would have to wait: no window is open" in result.stderr
    told = auto.host.call("policy", "check").output
    assert "by itself: apply; windows daily 02:00 UTC for 180 min: shut, opens next 2026-11-22 02:00 UTC" in told
    auto.policy("notify", OPEN)
    assert "open until 2026-11-21 14:00 UTC" in auto.host.call("policy", "check").output
    auto.policy("notify")
    assert "by itself: notify; upgrades at any time" in auto.host.call("policy", "check").output


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


def test_held_up_by_hand(auto: Auto) -> None:
    """An inhibitor stops a person, too; other people at the host do not."""
    auto.host.events = ()
    auto.hindrances = Hindrances(inhibitors=("apt (installing)",), users=("ann",))
    lines, code = auto.host.lines("apply", "--no-wait")
    assert code == 75 and "apt (installing)" in lines[-1]["reason"]
    auto.hindrances = Hindrances(users=("ann",))
    assert auto.host.call("apply", "--no-wait").exit_code == 0


def test_root_is_needed(auto: Auto) -> None:
    """As for every verb that acts."""
    auto.host.change(euid=lambda: 1000)
    assert auto.host.call("auto").exit_code == 3


def test_requests_of_a_test_host_are_private(auto: Auto, tmp_path: Path, plan_with: Callable[..., Plan]) -> None:
    """The state directory that a hook made is taken by the first upgrade as it is."""
    auto.ask(NEW)
    auto.host.composed.state.begin(plan_with()).close()
    assert auto.pending == (NEW,)

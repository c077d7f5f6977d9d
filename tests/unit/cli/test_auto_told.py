"""auto: what a person is told of it, and that its windows hold for a person, too."""

from __future__ import annotations

import pytest

from kupgrade.core.permission import Hindrances
from kupgrade.model.automation import Verdict
from kupgrade.model.schedule import Terms

from .automation import NEW, OPEN, RUNNING, SHUT, Auto


def test_a_dry_run_touches_nothing(auto: Auto) -> None:
    """It tells what it would do."""
    for mode in ("notify", "plan", "stage", "rehearse", "apply"):
        auto.policy(mode)
        auto.ask(NEW, RUNNING)
        before = auto.host.snapshot()
        attempt, _ = auto.look("-n")
        assert attempt["release"] == NEW and len(attempt["withdrawn"]) == 1
        assert auto.host.snapshot() == before and "start-worker" not in auto.host.calls and not auto.rehearsals


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

"""apply: approval, the worker, the verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import BlackoutTerm, Budget, Plan
from kupgrade.model.record import RecordKind

from .conftest import COMMITTED, HANDS_OFF, ROLLED_BACK, failed_early


def test_apply_explains_and_follows(host: Any) -> None:
    """The plan is shown, the worker started, its records told as they come, the end summed up."""
    result = host.call("apply")
    assert result.exit_code == 0, result.output
    for words in ("1. do prepare-store", "[blackout]", "done: do prepare-store", "Committed: 6.12.57 serves"):
        assert words in result.output
    assert "demo stood still for 1.5 s" in result.output
    assert host.calls[-1] == "start-worker" and host.composed.state.read_current() is None


def test_apply_json(host: Any) -> None:
    """The plan, one object a record, the result object last."""
    lines, code = host.lines("apply")
    assert code == 0 and lines[0]["format"] == "kupgrade.plan/1"
    assert [line["event"] for line in lines[1:-1]] == ["planned", "started", "done", "committed", "note", "finished"]
    assert lines[-1] == {
        "format": "kupgrade.result/1",
        "outcome": "committed",
        "upgrade": str(host.plan.upgrade),
        "old_release": "6.12.48",
        "new_release": "6.12.57",
        "running_release": "6.12.48",
        "exit": 0,
        "reason": "",
    }


@pytest.mark.parametrize(
    ("events", "code", "outcome"),
    [
        (COMMITTED, 0, "committed"),
        (ROLLED_BACK, 4, "rolled-back"),
        (HANDS_OFF, 5, "hands-off"),
        (failed_early(1), 1, "rolled-back"),
        (failed_early(3), 3, "rolled-back"),
        (failed_early(6), 6, "rolled-back"),
        (failed_early(75), 75, "rolled-back"),
        (failed_early(5), 1, "rolled-back"),
    ],
)
@pytest.mark.parametrize("systemd", [True, False])
def test_exit_codes(host: Any, events: Any, code: int, outcome: str, systemd: bool) -> None:
    """The code says how it ended, with the worker as without systemd."""
    host.events, host.systemd = events, systemd
    lines, found = host.lines("apply")
    assert (found, lines[-1]["exit"], lines[-1]["outcome"]) == (code, code, outcome)
    assert ("run" in host.calls) is not systemd
    assert (host.composed.state.current_id() is None) is (outcome != "hands-off")


def test_a_failure_before_the_freeze_is_no_rollback_of_workloads(host: Any) -> None:
    """The text says that the workloads never stood still."""
    host.events = failed_early(1)
    result = host.call("apply")
    assert result.exit_code == 1 and "before the workloads stood still" in result.output and "no room" in result.output


def test_choices_reach_the_planner(host: Any) -> None:
    """--kernel, --engine, --store and --retry-failed are handed on."""
    host.call("apply", "-n", "--kernel", "6.13", "--engine", "kexec", "--store", "disk", "--retry-failed")
    choices = host.calls[0]
    assert (choices["kernel"], choices["engine"], choices["store"]) == ("6.13", "kexec", "disk")
    assert choices["retry_failed"] is True and choices["rejected"] == {}


def test_over_budget_is_6(host: Any, plan_with: Callable[..., Plan]) -> None:
    """A prediction over the limit ends before anything is touched."""
    host.plan = plan_with(budgets=(Budget("demo", (BlackoutTerm("dump", 9.0, "measured"),), 5.0),))
    result = host.call("apply")
    assert result.exit_code == 6 and "demo: predicted 9 s, OVER the limit of 5 s" in result.output
    assert not host.composed.state.path.exists()
    lines, code = host.lines("apply")
    assert code == 6 and lines[-1]["outcome"] == "refused" and lines[-1]["error"]["code"] == 6


def test_a_terminal_is_asked(host: Any) -> None:
    """On a terminal consent is asked for; --yes and pipes are not asked."""
    host.change(terminal=lambda: True)
    assert host.call("apply", stdin="n\n").exit_code == 3
    assert "start-worker" not in host.calls
    assert host.call("apply", stdin="").exit_code == 130
    assert host.call("apply", stdin="y\n").exit_code == 0
    host.change(terminal=lambda: False)


def test_yes_does_not_ask(host: Any) -> None:
    """--yes goes on without a question."""
    host.change(terminal=lambda: True)
    result = host.call("apply", "--yes")
    assert result.exit_code == 0 and "[y/N]" not in result.output


def test_a_second_upgrade_is_not_now(host: Any) -> None:
    """While one is open the second is told 75, before it probes anything."""
    host.open()
    lines, code = host.lines("apply")
    assert (code, lines[-1]["outcome"], host.calls) == (75, "refused", [])
    assert "still open" in host.call("apply").stderr


def test_no_wait_returns_at_once(host: Any) -> None:
    """--no-wait starts the worker and says how to follow it."""
    host.events = ()
    result = host.call("apply", "--no-wait")
    assert result.exit_code == 0 and "status --watch" in result.output
    assert host.composed.state.read_current() is not None


def test_no_wait_json(host: Any) -> None:
    """The result says started, and which upgrade."""
    host.events = ()
    lines, code = host.lines("apply", "--no-wait")
    assert (code, lines[-1]["outcome"], lines[-1]["upgrade"]) == (0, "started", str(host.plan.upgrade))


def test_ctrl_c_leaves_the_worker_alone(host: Any) -> None:
    """Ctrl-C while following ends the following only."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    host.events = ()
    host.change(sleep=interrupt)
    result = host.call("apply")
    assert result.exit_code == 130 and "goes on without this terminal" in result.output
    assert host.composed.state.read_current() is not None
    host.composed.state.finish(host.plan.upgrade)


def test_a_dead_worker_is_told(host: Any) -> None:
    """Nobody at work for too long: following ends with 5 and says where to look."""
    host.events = ()
    result = host.call("apply")
    assert result.exit_code == 5 and "journalctl" in result.stderr


def test_a_worker_that_does_not_start_closes_the_upgrade(host: Any) -> None:
    """systemctl fails: nothing was done, nothing stays open."""

    def fail(root: Path) -> bool:
        raise KupgradeError("systemctl failed", "unit not found")

    host.change(start_worker=fail)
    host.events = ((RecordKind.FINISHED, None, {"outcome": "rolled-back"}),)
    result = host.call("apply")
    assert result.exit_code == 1 and "unit not found" in result.stderr
    assert host.composed.state.read_current() is None
    assert host.composed.state.history()[0].outcome == "rolled-back"


def test_an_old_wish_does_not_end_the_next_upgrade(host: Any) -> None:
    """A rollback asked for earlier is forgotten when an upgrade begins."""
    path = host.root / "run/kupgrade/rollback-requested"
    path.parent.mkdir(parents=True)
    path.write_text("please\n")
    host.call("apply")
    assert not path.exists()


def test_a_hostile_state_directory_is_refused(host: Any) -> None:
    """A state directory that others could use is not believed by any verb."""
    host.open()
    host.composed.state.path.chmod(0o777)
    for verb in ("apply", "status", "rollback", "history"):
        result = host.call(verb)
        assert result.exit_code == 3 and "not root's alone" in result.stderr, verb


def test_terminal_lines_overwrite(host: Any) -> None:
    """On a terminal the open step is shown in a line that its end overwrites; NO_COLOR and pipes get plain text."""
    host.change(terminal=lambda: True)
    assert "\r" in host.call("apply", "--yes").output

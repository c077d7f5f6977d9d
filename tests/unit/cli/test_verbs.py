"""preflight, plan, status, resume, history, policy."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from typing import Any

from kupgrade import planfile
from kupgrade.model.plan import BlackoutTerm, Budget, Plan, Refusal
from kupgrade.model.record import Now, RecordKind

from .conftest import COMMITTED, HANDS_OFF, ROLLED_BACK, write

BEGUN = (RecordKind.STARTED, 0, {})
DONE = (RecordKind.DONE, 0, {"seconds": 0.5})


# preflight


def test_preflight_tells_engines_workloads_and_unknowns(host: Any) -> None:
    """What can be done, and every fact that nobody could tell."""
    result = host.call("preflight")
    assert result.exit_code == 0
    for words in ("Running 6.12.48", "kexec: can", "none named by the policy", "watchdog: no such device"):
        assert words in result.output


def test_preflight_tells_what_each_store_lacks_for_a_target(host: Any) -> None:
    """By the kernel that was named; as JSON, too."""
    host.refusals = (Refusal("this kernel hands memory over", "kho=on is missing", "Boot with kho=on"),)
    told = host.call("preflight", "--kernel", "7.2.1").output
    assert "Image stores of the kexec engine, to 7.2.1" in told
    assert "luo: refused" in told and "disk: can" in told and "Boot with kho=on" in told
    found = json.loads(host.call("preflight", "--json").output)
    assert found["target"] == "7.3.4"
    assert [name for name, refusals in found["stores"].items() if refusals] == ["luo"]
    assert "in place: unknown; the policy says copy" in told
    assert found["memory"] == {"policy": "copy", "in_place": "unknown"}


def test_preflight_refuses_with_remedies(host: Any) -> None:
    """No engine can: exit 3, each reason with its remedy, the same in JSON."""
    host.refusals = (Refusal("criu works", "criu is not installed", "Install criu"),)
    result = host.call("preflight")
    assert result.exit_code == 3 and "kexec: refused" in result.output and "remedy: Install criu" in result.output
    (value,), code = host.lines("preflight")
    assert code == 3 and value["engines"]["kexec"][0]["remedy"] == "Install criu"


# plan


def test_plan_explains(host: Any) -> None:
    """Steps with undo, blackout with basis, losses, warnings."""
    result = host.call("plan")
    assert result.exit_code == 0 and "undo: undo dump" in result.output and "rehearsed" in result.output
    assert not host.composed.state.path.exists()


def test_plan_json_is_the_stored_form(host: Any) -> None:
    """What --json prints decodes to the plan."""
    from kupgrade.model.codec import decode

    (value,), code = host.lines("plan")
    assert code == 0 and decode(Plan, value) == host.plan


def test_detailed_exitcode_is_10(host: Any) -> None:
    """With --detailed-exitcode something to do is 10."""
    assert host.call("plan", "--detailed-exitcode").exit_code == 10


def test_plan_over_budget_is_6(host: Any, plan_with: Callable[..., Plan]) -> None:
    """A plan that apply would refuse says so."""
    host.plan = plan_with(budgets=(Budget("demo", (BlackoutTerm("dump", 9.0, "measured"),), 5.0),))
    result = host.call("plan")
    assert result.exit_code == 6 and "apply would refuse" in result.stderr


def test_plan_out_stores_privately(host: Any) -> None:
    """The stored plan is root's alone, replaces an older one, and a dry run stores nothing."""
    path = host.root / "a.json"
    assert host.call("plan", "-n", "--out", str(path)).exit_code == 0 and not path.exists()
    assert host.call("plan", "--out", str(path)).exit_code == 0
    assert host.call("plan", "--out", str(path)).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == planfile.text(host.plan)


def test_plan_out_to_nowhere_is_refused(host: Any) -> None:
    """A directory that does not exist is told, without a traceback."""
    result = host.call("plan", "--out", str(host.root / "none/a.json"))
    assert result.exit_code == 3 and "cannot be written" in result.stderr


# status


def test_status_without_an_upgrade(host: Any) -> None:
    """Nothing open: the running release and the last upgrade."""
    assert "No upgrade is open" in host.call("status").output
    host.call("apply")
    result = host.call("status")
    assert result.exit_code == 0 and "Last:" in result.output and "committed" in result.output
    (value,), _ = host.lines("status")
    assert value["open"] is False and value["last"]["outcome"] == "committed"


def test_status_of_an_open_upgrade(host: Any) -> None:
    """Where it stands, the open step, what is next and why, what is safe, what to do."""
    host.open(BEGUN)
    result = host.call("status")
    assert result.exit_code == 0
    for words in ("is being prepared", "1 of 8: do prepare-store", "next:", "safe:", "No process works on it"):
        assert words in result.output
    (value,), _ = host.lines("status")
    assert value["open"] is True and value["standing"]["stage"] == "staging"
    assert [event["event"] for event in value["timeline"]] == ["planned", "started"]


def test_status_names_the_worker(host: Any) -> None:
    """While a process is at work the open step is its business."""
    host.open(BEGUN)
    host.change(holder=lambda path, root: 4711)
    result = host.call("status")
    assert "process 4711 is at work" in result.output and "Wait" in result.output


def test_status_needs_a_person(host: Any) -> None:
    """Hands off is exit code 5, with the reason and the way out."""
    host.open(*HANDS_OFF)
    result = host.call("status")
    assert result.exit_code == 5 and "a third release runs" in result.output and "--abandon" in result.output


def test_status_watch_ends_with_the_upgrade(host: Any) -> None:
    """--watch prints each change once and ends when the upgrade is over."""
    host.open(BEGUN)
    steps = iter([(DONE,), (), COMMITTED[2:]])

    def sleep(seconds: float) -> None:
        journal = host.composed.state.open_current()
        write(journal, next(steps))
        journal.close()

    host.change(sleep=sleep)
    lines, code = host.lines("status", "--watch")
    assert code == 0 and [line["standing"]["stage"] for line in lines] == ["staging", "staging", "cleaned"]


def test_status_of_a_damaged_journal_needs_a_person(host: Any) -> None:
    """Damage is told with exit code 5, never repaired, never a traceback."""
    host.open(BEGUN)
    path = host.composed.state.journal_path(host.plan.upgrade)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"planned", b"plonked"))
    result = host.call("status")
    assert result.exit_code == 5 and "damaged" in result.stderr and path.read_bytes() != data


# resume


def test_resume_calls_the_agent(host: Any) -> None:
    """Arguments are handed on, its exit code is returned."""
    assert host.call("resume", "--worker").exit_code == 0
    host.change(resume=lambda arguments: 5)
    assert host.call("resume").exit_code == 5
    assert host.calls == [["--worker"]]


def test_resume_dry_run_decides_only(host: Any) -> None:
    """-n says what the next decision would be."""
    assert "nothing would be done" in host.call("resume", "-n").output
    host.open(BEGUN, DONE)
    (value,), code = host.lines("resume", "-n")
    assert (code, value["next"], host.calls) == (0, "run", [])
    host.change(observe=lambda state, root: Now("44444444-4444-4444-8444-444444444444", "6.12.48", None))
    assert "fall-back" in host.call("resume", "-n").output


# history


def test_history_lists_everything(host: Any, plan_with: Callable[..., Plan]) -> None:
    """Outcome, releases, blackout, reason; a damaged one too; the rejected release at the end."""
    assert "No upgrade has been made" in host.call("history").output
    host.call("apply")
    host.plan = plan_with("20261122-041503-aaaaaa")
    host.events = ((RecordKind.STARTED, 4, {}), *ROLLED_BACK[1:])
    host.call("apply")
    damaged = host.composed.state.path / "upgrades/20261123-041503-bbbbbb"
    damaged.mkdir(mode=0o700)
    result = host.call("history")
    assert result.exit_code == 0
    for words in ("committed", "demo stood still 1.5 s", "rolled-back", "dump failed", "damaged", "--retry-failed"):
        assert words in result.output
    lines, _ = host.lines("history")
    assert [(line["outcome"], line["rejected"]) for line in lines] == [
        ("committed", True),
        ("rolled-back", True),
        ("damaged", False),
    ]


# policy


def test_policy_check(host: Any) -> None:
    """A usable policy is summed up with its files and workloads; nobody needs root for that."""
    host.change(euid=lambda: 1000)
    directory = host.root / "etc/kupgrade/policy.d"
    directory.mkdir(parents=True, mode=0o755)
    path = directory / "10-a.toml"
    path.write_text("[[workload]]\nname = 'demo'\nunit = 'demo.service'\nmax_blackout = '5s'\n")
    path.chmod(0o644)
    result = host.call("policy", "check")
    assert result.exit_code == 0 and str(path) in result.output and "blackout at most 5 s" in result.output
    (value,), _ = host.lines("policy", "check")
    assert value["policy"]["workloads"][0]["unit"] == "demo.service" and value["files"] == [str(path)]
    path.write_text("dead_line = 1\n")
    result = host.call("policy", "check")
    assert result.exit_code == 3 and "line 1: dead_line is not usable: no such key" in result.stderr

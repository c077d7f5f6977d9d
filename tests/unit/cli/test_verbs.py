"""preflight, plan, status, rollback, resume, history, policy."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kupgrade import planfile, worker
from kupgrade.kernel.locks import holder
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


# rollback


UNDONE = ((RecordKind.FINISHED, None, {"outcome": "rolled-back"}),)


def test_rollback_without_an_upgrade(host: Any) -> None:
    """Nothing open: nothing to do."""
    result = host.call("rollback")
    assert result.exit_code == 0 and "nothing to roll back" in result.output
    lines, code = host.lines("rollback")
    assert (code, lines[-1]["outcome"]) == (0, "nothing-to-do")


@pytest.mark.parametrize("systemd", [True, False])
def test_rollback_records_the_wish_and_goes_on(host: Any, systemd: bool) -> None:
    """No worker: the wish is recorded as the operator's, the loop carries it out, success is 0."""
    host.open(BEGUN, DONE)
    host.events, host.systemd = UNDONE, systemd
    lines, code = host.lines("rollback")
    assert (code, lines[-1]["outcome"], lines[-1]["exit"]) == (0, "rolled-back", 0)
    (wish,) = [r for r in host.composed.state.read(host.plan.upgrade) if r.kind is RecordKind.UNDO_REQUESTED]
    assert wish.data == {"reason": "the operator asked for it", "by": "operator"}
    assert host.composed.state.current_id() is None


def test_rollback_asks_the_worker(host: Any) -> None:
    """A worker holds the journal: it is asked through a file, and followed."""
    journal = host.composed.state.begin(host.plan)
    write(journal, (BEGUN,))
    request = host.root / "run/kupgrade/rollback-requested"

    def sleep(seconds: float) -> None:
        assert request.read_text() == "the operator asked for it\n"
        write(journal, ((RecordKind.UNDO_REQUESTED, None, {"reason": request.read_text().strip()}), *UNDONE))

    host.change(sleep=sleep, holder=lambda path, root: 4711)
    result = host.call("rollback")
    assert result.exit_code == 0 and "Taken back before the workloads stood still" in result.output
    assert "start-worker" not in host.calls
    journal.close()


def test_rollback_twice_asks_once(host: Any) -> None:
    """An upgrade that is being rolled back already is only followed."""
    host.open(BEGUN, (RecordKind.UNDO_REQUESTED, None, {"reason": "dump failed", "by": "kupgrade"}))
    host.events = UNDONE
    assert host.call("rollback").exit_code == 0
    records = host.composed.state.read(host.plan.upgrade)
    assert sum(record.kind is RecordKind.UNDO_REQUESTED for record in records) == 1


def test_rollback_after_the_commit_is_refused(host: Any) -> None:
    """The explanation names the way back: a new upgrade; also when the upgrade is closed already."""
    host.open((RecordKind.COMMITTED, None, {}))
    result = host.call("rollback")
    assert result.exit_code == 3 and "committed" in result.stderr and "apply --kernel 6.12.48" in result.stderr
    journal = host.composed.state.open_current()
    write(journal, COMMITTED[4:])
    journal.close()
    host.composed.state.finish(host.plan.upgrade)
    assert host.call("rollback").exit_code == 3


def test_rollback_that_came_too_late(host: Any) -> None:
    """The commit was faster: refused, not success."""
    host.open(BEGUN)
    host.events = COMMITTED[2:]
    lines, code = host.lines("rollback")
    assert (code, lines[-1]["outcome"]) == (3, "committed")


def test_rollback_that_needs_a_person(host: Any) -> None:
    """Hands off during the rollback is 5."""
    host.open(BEGUN)
    host.events = HANDS_OFF
    assert host.call("rollback").exit_code == 5


def test_rollback_dry_run_shows_the_undo(host: Any) -> None:
    """-n lists what would be undone, last step first, and records nothing."""
    host.open(BEGUN, DONE, (RecordKind.STARTED, 1, {}))
    result = host.call("rollback", "-n")
    assert result.exit_code == 0
    assert result.output.index("load-kernel: undo load-kernel") < result.output.index("prepare-store: undo")
    assert len(host.composed.state.read_current()) == 4
    (value,), _ = host.lines("rollback", "-n")
    assert len(value["would_undo"]) == 2


def test_rollback_no_wait(host: Any) -> None:
    """--no-wait returns when the wish is on disk."""
    host.open(BEGUN)
    host.events = ()
    lines, code = host.lines("rollback", "--no-wait")
    assert (code, lines[-1]["outcome"]) == (0, "started")
    assert host.composed.state.read_current()[-1].kind is RecordKind.UNDO_REQUESTED


def test_rollback_interrupted(host: Any) -> None:
    """Ctrl-C ends the following, not the rollback."""
    host.open(BEGUN)
    host.events = ()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    host.change(sleep=interrupt)
    assert host.call("rollback").exit_code == 130


def test_abandon_only_what_needs_a_person(host: Any) -> None:
    """--abandon closes an upgrade that is stuck, keeps the evidence, and nothing else."""
    host.open(BEGUN)
    assert host.call("rollback", "--abandon").exit_code == 3
    journal = host.composed.state.open_current()
    write(journal, HANDS_OFF)
    journal.close()
    assert host.call("rollback").exit_code == 5
    assert host.call("rollback", "--abandon", "-n").exit_code == 0
    assert host.composed.state.current_id() is not None
    assert host.call("rollback", "--abandon").exit_code == 0
    assert host.composed.state.current_id() is None
    assert host.composed.state.history()[0].outcome == "hands-off"


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


# what they stand on


def test_the_holder_of_a_lock_is_found(tmp_path: Path) -> None:
    """The PID in /proc/locks that holds the file, without taking part in the lock."""
    path = tmp_path / "journal"
    path.touch()
    (tmp_path / "proc").mkdir()
    inode = path.stat().st_ino
    text = f"1: POSIX  ADVISORY  WRITE 1 fe:01:{inode} 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 fe:01:{inode} 0 EOF\n"
    (tmp_path / "proc/locks").write_text(text)
    assert holder(path, tmp_path) == 4711
    (tmp_path / "proc/locks").write_text(text.replace("FLOCK", "-> FLOCK"))
    assert holder(path, tmp_path) is None
    assert holder(tmp_path / "none", tmp_path) is None


def test_the_holder_of_a_real_lock_is_found(tmp_path: Path) -> None:
    """The kernel's own list is understood."""
    path = tmp_path / "journal"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if str(path.stat().st_ino) not in Path("/proc/locks").read_text():
            pytest.skip("this kernel hides locks")
        assert holder(path) == os.getpid()
    assert holder(path) is None


def test_without_systemd_no_worker_starts(tmp_path: Path) -> None:
    """sd_booted(3) says no: the caller must run the loop itself."""
    assert worker.start(tmp_path) is False


def test_the_worker_is_started_by_systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With systemd the unit is started without waiting for it."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/systemctl"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert worker.start(tmp_path) is True
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "start --no-block kupgrade-apply.service"


def test_places_agree() -> None:
    """The file through which the worker is asked to roll back is the one its loop reads."""
    from kupgrade.machine.places import Places

    assert Places(Path("/")).rollback_request == Path("/") / worker.REQUEST

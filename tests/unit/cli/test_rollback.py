"""rollback: the wish, the worker that is asked, what is refused, what is abandoned."""

from __future__ import annotations

from typing import Any

import pytest

from kupgrade.model.record import RecordKind

from .conftest import COMMITTED, HANDS_OFF, write

BEGUN = (RecordKind.STARTED, 0, {})
DONE = (RecordKind.DONE, 0, {"seconds": 0.5})


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

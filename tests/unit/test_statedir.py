"""The state directory: one open upgrade, durable, private, never guessed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kupgrade.core.fold import fold
from kupgrade.errors import BadInputError, NeedsHumanError, NotNowError
from kupgrade.journal import Journal
from kupgrade.model.plan import Plan, StepSpec
from kupgrade.model.record import Record, RecordKind
from kupgrade.statedir import StateDirectory

CROSS = 4
NEW_BOOT = "22222222-2222-4222-8222-222222222222"
PlanWith = Callable[..., Plan]
RecordsOf = Callable[..., tuple[Record, ...]]


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path)


def past(state: StateDirectory, plan: Plan, records: tuple[Record, ...], over: bool = True) -> None:
    """An upgrade with these records."""
    journal = state.begin(plan)
    for record in records[1:]:
        journal.append(record)
    journal.close()
    if over:
        state.finish(plan.upgrade)


def test_begin_opens_an_upgrade(state: StateDirectory, plan_with: PlanWith) -> None:
    """Plan, journal and link are there, readable, private, and the journal is locked."""
    plan = plan_with()
    journal = state.begin(plan)
    assert state.current_id() == plan.upgrade
    assert fold(state.read_current() or ()).plan == plan
    with pytest.raises(NotNowError):
        state.open_current()
    journal.close()
    again = state.open_current()
    assert again is not None and again.records == journal.records
    again.close()
    for path in (state.path, *state.path.rglob("*")):
        assert path.is_symlink() or path.stat().st_mode & 0o077 == 0


def test_reading_creates_nothing(state: StateDirectory) -> None:
    """On a host that never upgraded there is nothing, and it stays so."""
    assert state.read_current() is None and state.open_current() is None and state.current_id() is None
    assert state.history() == () and state.rejected_releases() == {}
    assert not state.path.exists()


def test_a_second_upgrade_is_refused(state: StateDirectory, plan_with: PlanWith) -> None:
    """While one is open no other begins; afterwards it may."""
    state.begin(plan_with()).close()
    second = plan_with("20261122-041503-aaaaaa")
    with pytest.raises(NotNowError, match="still open"):
        state.begin(second)
    assert not (state.path / "upgrades" / str(second.upgrade)).exists()
    state.finish(plan_with().upgrade)
    state.begin(second).close()


def test_a_plan_is_applied_once(state: StateDirectory, plan_with: PlanWith) -> None:
    """The same plan does not run twice."""
    state.begin(plan_with()).close()
    state.finish(plan_with().upgrade)
    with pytest.raises(BadInputError, match="already"):
        state.begin(plan_with())


def test_a_finished_upgrade_does_not_block(state: StateDirectory, plan_with: PlanWith, records_of: RecordsOf) -> None:
    """Killed between the last record and the removal of the link: the next upgrade begins all the same."""
    plan = plan_with()
    past(state, plan, records_of(plan, (RecordKind.FINISHED, None, {"outcome": "rolled-back"})), over=False)
    state.begin(plan_with("20261122-041503-aaaaaa")).close()


def test_finish_leaves_another_upgrade_alone(state: StateDirectory, plan_with: PlanWith) -> None:
    """Finishing an upgrade that is not open changes nothing."""
    state.begin(plan_with()).close()
    state.finish(plan_with("20261122-041503-aaaaaa").upgrade)
    assert state.current_id() == plan_with().upgrade


@pytest.mark.parametrize("target", ["upgrades/20261122-041503-aaaaaa", "/etc", "../../x", "upgrades/x"])
def test_a_strange_link_needs_a_human(state: StateDirectory, plan_with: PlanWith, target: str) -> None:
    """A link that leads elsewhere is never followed."""
    state.begin(plan_with()).close()
    (state.path / "current").unlink()
    (state.path / "current").symlink_to(target)
    with pytest.raises(NeedsHumanError):
        state.read_current()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_hostile_modes_are_refused(state: StateDirectory, plan_with: PlanWith, mode: int) -> None:
    """A state directory that others could use is not believed."""
    state.begin(plan_with()).close()
    state.path.chmod(mode)
    for call in (state.read_current, state.history, lambda: state.begin(plan_with())):
        with pytest.raises(BadInputError, match="chmod 700"):
            call()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs chown")
def test_another_owner_is_refused(state: StateDirectory, plan_with: PlanWith) -> None:
    """A state directory of another user is not believed."""
    state.begin(plan_with()).close()
    os.chown(state.path, 1234, 1234)
    with pytest.raises(BadInputError, match="owner 1234"):
        state.read_current()


def test_a_link_in_place_of_the_directory_is_refused(state: StateDirectory, tmp_path: Path) -> None:
    """A link to somewhere else is not the state directory."""
    state.path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir(0o700)
    state.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInputError, match="not a directory"):
        state.history()


def test_history_tells_everything(state: StateDirectory, plan_with: PlanWith, records_of: RecordsOf) -> None:
    """Each upgrade is listed, oldest first, a damaged one as damaged, one never begun as abandoned."""
    plan = plan_with()
    note: dict[str, Any] = {"blackout": {"demo": 1.25}}
    finished = {"outcome": "committed"}
    events = ((RecordKind.COMMITTED,), (RecordKind.NOTE, None, note), (RecordKind.FINISHED, None, finished))
    past(state, plan, records_of(plan, *events))
    damaged = plan_with("20261122-041503-aaaaaa")
    past(state, damaged, records_of(damaged))
    path = state.journal_path(damaged.upgrade)
    path.write_bytes(path.read_bytes()[:10] + b"!\n" + path.read_bytes())
    lost = plan_with("20261123-041503-bbbbbb")
    past(state, lost, records_of(lost))
    opened = plan_with("20261124-041503-cccccc")
    past(state, opened, records_of(opened, (RecordKind.HANDS_OFF, None, {"reason": "help"})), over=False)
    history = state.history()
    assert [entry.outcome for entry in history] == ["committed", "damaged", "abandoned", "hands-off"]
    assert history[0].blackout == {"demo": 1.25} and history[0].new_release == "6.12.57"
    assert history[1].upgrade == str(damaged.upgrade) and "damaged" in history[1].reason
    assert history[3].reason == "help"


def events_of(*, armed: bool, by: str, crossed: bool) -> list[tuple[Any, ...]]:
    events: list[tuple[Any, ...]] = []
    if armed:
        events.append((RecordKind.STARTED, CROSS, {"epoch": 1}))
    if crossed:
        events.append((RecordKind.CROSSED, None, {"release": "6.12.57"}, NEW_BOOT))
    boot = NEW_BOOT if crossed else "11111111-1111-4111-8111-111111111111"
    events.append((RecordKind.UNDO_REQUESTED, None, {"reason": "restore failed", "by": by}, boot))
    return [*events, (RecordKind.FINISHED, None, {"outcome": "rolled-back"}, boot)]


@pytest.mark.parametrize(
    ("armed", "by", "crossed", "rejected"),
    [
        (False, "kupgrade", False, False),
        (True, "kupgrade", False, False),
        (True, "operator", False, False),
        (True, "kupgrade", True, True),
        (True, "operator", True, True),
    ],
)
def test_what_crossed_and_came_back_is_rejected(
    state: StateDirectory,
    plan_with: PlanWith,
    records_of: RecordsOf,
    armed: bool,
    by: str,
    crossed: bool,
    rejected: bool,
) -> None:
    """Rejected: the machine left the old kernel and the way led back; a jump that never happened says nothing."""
    plan = plan_with()
    past(state, plan, records_of(plan, *events_of(armed=armed, by=by, crossed=crossed)))
    assert state.rejected_releases() == ({"6.12.57": "restore failed"} if rejected else {})


def test_forget_lets_a_release_be_tried_again(
    state: StateDirectory, plan_with: PlanWith, records_of: RecordsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was rejected before no longer counts, what is afterwards does; a commit clears it, too."""
    events = events_of(armed=True, by="kupgrade", crossed=True)
    plan = plan_with()
    monkeypatch.setattr("time.time", lambda: 1_000.0)
    past(state, plan, records_of(plan, *events))
    monkeypatch.setattr("time.time", lambda: 2_000.0)
    state.forget("6.12.57")
    assert state.rejected_releases() == {}
    monkeypatch.setattr("time.time", lambda: 3_000.0)
    again = plan_with("20261122-041503-aaaaaa")
    past(state, again, records_of(again, *events))
    assert state.rejected_releases() == {"6.12.57": "restore failed"}
    good = plan_with("20261123-041503-bbbbbb")
    past(
        state,
        good,
        records_of(good, (RecordKind.COMMITTED,), (RecordKind.FINISHED, None, {"outcome": "committed"})),
    )
    assert state.rejected_releases() == {}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other"}', '{"format": "kupgrade.forgotten/1", "releases": 3}']
)
def test_a_damaged_list_of_forgotten_releases_is_refused(state: StateDirectory, plan_with: PlanWith, text: str) -> None:
    """Nobody knows what was forgotten: say so."""
    state.begin(plan_with()).close()
    (state.path / "forgotten.json").write_text(text)
    with pytest.raises(BadInputError, match="forgotten"):
        state.rejected_releases()


def test_begin_locks_out_another_begin(state: StateDirectory, plan_with: PlanWith) -> None:
    """Of two processes that begin at the same moment one is turned away."""
    state.path.mkdir(mode=0o700, parents=True)
    held = Journal.create(state.path / ".lock")
    with pytest.raises(NotNowError, match="beginning"):
        state.begin(plan_with())
    held.close()


def test_power_cut_before_the_link(state: StateDirectory, plan_with: PlanWith, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is open, and the directory does not stand in the way of another plan."""
    with monkeypatch.context() as patch:
        patch.setattr(StateDirectory, "_point_current", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError):
            state.begin(plan_with())
    assert state.read_current() is None and state.history()[0].outcome == "abandoned"
    state.begin(plan_with("20261122-041503-aaaaaa")).close()


def test_the_link_comes_last_and_goes_durably(
    state: StateDirectory, plan_with: PlanWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upgrade's directory is on disk before the link leads there; the link, and its end, when that is told."""
    synced: list[tuple[str, bool]] = []
    link = state.path / "current"
    monkeypatch.setattr(
        "kupgrade.statedir.sync_directory", lambda path: synced.append((path.name, os.path.lexists(link)))
    )
    state.begin(plan_with()).close()
    assert synced[-2:] == [("upgrades", False), (state.path.name, True)]
    state.finish(plan_with().upgrade)
    assert synced[-1] == (state.path.name, False)


@pytest.mark.parametrize(
    ("failed", "by", "rejected"), [(True, "kupgrade", True), (True, "operator", False), (False, "kupgrade", False)]
)
def test_a_handover_that_failed_is_rejected(
    state: StateDirectory, plan_with: PlanWith, records_of: RecordsOf, failed: bool, by: str, rejected: bool
) -> None:
    """Beside the old kernel its journal holds no crossing: the failure of the handover speaks against the release."""
    plan = plan_with()
    phases = [replace(phase, steps=tuple(map(handed_over, phase.steps))) for phase in plan.phases]
    plan = plan_with(phases=tuple(phases))
    events: list[tuple[Any, ...]] = [(RecordKind.STARTED, CROSS, {"epoch": 1})]
    if failed:
        events.append((RecordKind.FAILED, CROSS, {"error": "it panicked"}))
    events.append((RecordKind.UNDO_REQUESTED, None, {"reason": "it panicked", "by": by}))
    past(state, plan, records_of(plan, *events, (RecordKind.FINISHED, None, {"outcome": "rolled-back"})))
    assert state.rejected_releases() == ({"6.12.57": "it panicked"} if rejected else {})


def handed_over(step: StepSpec) -> StepSpec:
    return replace(step, kind="hand-over") if step.kind == "cross" else step


def test_a_full_disk_leaves_nothing_that_keeps_the_plan_from_being_applied(
    state: StateDirectory, plan_with: PlanWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When there is room again the same plan begins: it had not been applied."""
    plan = plan_with()

    def full(_journal: Journal, _record: Record, *, durable: bool = True) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(OSError, match="No space"):
            state.begin(plan)
    assert state.current_id() is None and state.history() == ()
    state.begin(plan).close()
    assert state.current_id() == plan.upgrade


def test_finishing_cannot_take_the_link_of_the_next_upgrade(
    state: StateDirectory, plan_with: PlanWith, records_of: RecordsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of one that is over, and who begins the next one right then: what is open stays open."""
    plan, second = plan_with(), plan_with("20261122-041503-aaaaaa")
    past(state, plan, records_of(plan, (RecordKind.FINISHED, None, {"outcome": "rolled-back"})), over=False)
    current = StateDirectory.current_id
    began: list[bool] = []

    def asked(self: StateDirectory) -> Any:
        found = current(self)
        if not began:
            began.append(True)
            try:
                StateDirectory(state.root).begin(second).close()
            except NotNowError:
                began.append(False)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(StateDirectory, "current_id", asked)
        state.finish(plan.upgrade)
    if began == [True, False]:
        state.begin(second).close()
    assert state.current_id() == second.upgrade


def test_forgetting_does_not_hang_on_the_clock(
    state: StateDirectory, plan_with: PlanWith, records_of: RecordsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejected while the clock was ahead, forgotten after it was set right: it may be tried again all the same."""
    plan = plan_with()
    monkeypatch.setattr("time.time", lambda: 9_000.0)
    past(state, plan, records_of(plan, *events_of(armed=True, by="kupgrade", crossed=True)))
    assert state.rejected_releases()
    monkeypatch.setattr("time.time", lambda: 2_000.0)
    state.forget("6.12.57")
    assert state.rejected_releases() == {}

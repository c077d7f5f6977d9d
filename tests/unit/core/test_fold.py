"""Records folded into a state: step by step and all at once, and what contradicts itself is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kupgrade.core.fold import UNOBSERVED, apply, fold
from kupgrade.errors import BadInputError, NeedsHumanError
from kupgrade.model.codec import encode
from kupgrade.model.record import Outcome, Record, RecordKind, StepStatus
from tests.fakes.drive import plan, play
from tests.fakes.endings import Behaviour

PLAN = plan()
FIRST = Record(1, RecordKind.PLANNED, "boot-a", 1, 0.0, 0.0, data={"plan": encode(PLAN)})


def record(kind: RecordKind, step: int | None = None, *, epoch: int = 1, boot: str = "boot-a", **data: Any) -> Record:
    return Record(2, kind, boot, epoch, 0.0, 0.0, step, data)


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(new_kernel="panics"), Behaviour(thaw_failures=1)])
def test_folding_all_at_once_equals_record_by_record(behaviour: Behaviour) -> None:
    """The state the loop carries along is the state that a new process reads from the journal."""
    run = play(behaviour, {40: "kill", 90: "kill"})
    state = fold(run.log.records[:1])
    for at, one in enumerate(run.log.records[1:], 2):
        state = apply(state, one)
        assert state == fold(run.log.records[:at])
    assert state == run.state


@pytest.mark.parametrize("records", [[], [record(RecordKind.COMMITTED)]])
def test_a_journal_begins_with_a_plan(records: list[Record]) -> None:
    """Without a plan nothing can be known."""
    with pytest.raises(NeedsHumanError, match="begin with a plan"):
        fold(records)


def test_a_plan_of_another_shape_is_refused() -> None:
    """A plan with a field that this release does not know is not half-read."""
    for data in ({}, {"plan": None}, {"plan": {**encode(PLAN), "more": 1}}):
        with pytest.raises(BadInputError, match="plan"):
            fold([dataclasses.replace(FIRST, data=data)])


@pytest.mark.parametrize(
    "bad",
    [
        record(RecordKind.PLANNED),
        record(RecordKind.STARTED, 999),
        record(RecordKind.STARTED, -1),
        record(RecordKind.STARTED),
        record(RecordKind.COMMITTED, 0),
        record(RecordKind.DONE, epoch=0),
        record(RecordKind.FINISHED, outcome="vanished"),
        record(RecordKind.FINISHED),
    ],
    ids=str,
)
def test_a_record_out_of_place_needs_a_person(bad: Record) -> None:
    """A half-known state is never guessed."""
    with pytest.raises(NeedsHumanError):
        fold([FIRST, bad])


def test_the_first_before_image_stays() -> None:
    """A second attempt, after the first one's effect, must not overwrite what was there before any."""
    state = fold([FIRST, record(RecordKind.STARTED, 1, entry="mine"), record(RecordKind.STARTED, 1, entry="changed")])
    assert state.steps[1].before == {"entry": "mine"}
    assert state.steps[1].attempts == 2


def test_a_before_image_that_could_not_be_taken_is_replaced() -> None:
    """The mark of a failed observation is no before-image."""
    unobserved = dataclasses.replace(record(RecordKind.STARTED, 1), data={UNOBSERVED: True})
    state = fold([FIRST, unobserved, record(RecordKind.STARTED, 1, entry="mine")])
    assert state.steps[1].before == {"entry": "mine"}


def test_each_boot_has_its_own_before_image() -> None:
    """What was there before an attempt in an earlier boot says nothing about this one."""
    first = record(RecordKind.STARTED, 1, entry="old")
    state = fold([FIRST, first, record(RecordKind.STARTED, 1, boot="boot-b", entry="new")])
    assert state.steps[1].before == {"entry": "new"}


def test_failures_of_do_and_undo_are_counted_apart() -> None:
    """Each has its own limit."""
    state = fold(
        [
            FIRST,
            record(RecordKind.STARTED, 0),
            record(RecordKind.FAILED, 0, error="no"),
            record(RecordKind.UNDO_STARTED, 0),
            record(RecordKind.FAILED, 0, error="still no"),
        ]
    )
    assert (state.steps[0].failures, state.steps[0].undo_failures) == (1, 1)
    assert state.steps[0].error == "still no"
    assert state.steps[0].status is StepStatus.UNDO_STARTED


def test_the_first_reason_to_undo_is_told() -> None:
    """What came later is a consequence."""
    wish = record(RecordKind.UNDO_REQUESTED, reason="the operator", by="operator")
    state = fold([FIRST, wish, record(RecordKind.FELL_BACK, epoch=2, reason="a power cut")])
    assert (state.undo_reason, state.undo_by) == ("the operator", "operator")
    assert state.epoch == 2


def test_figures_change_nothing() -> None:
    """A note is for the report."""
    state = fold([FIRST])
    assert dataclasses.replace(fold([FIRST, record(RecordKind.NOTE, blackout=1)]), last_seq=1) == state


def test_the_outcome_ends_it() -> None:
    """A finished upgrade is over."""
    state = fold([FIRST, record(RecordKind.FINISHED, outcome="rolled-back")])
    assert state.over
    assert state.outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        (("damaged", "address in use", "address in use"), "damaged; then address in use"),
        (("busy", "busy", "busy"), "busy"),
        (("", "busy"), "busy"),
    ],
)
def test_the_first_error_of_an_undo_stays_in_front(errors: tuple[str, ...], told: str) -> None:
    """The next attempt may fail of what the first one left; what made the step itself fail is no part of it."""
    records = [FIRST, record(RecordKind.STARTED, 0), record(RecordKind.FAILED, 0, error="no")]
    for error in errors:
        records += [record(RecordKind.UNDO_STARTED, 0), record(RecordKind.FAILED, 0, error=error)]
    assert fold(records).steps[0].error == told

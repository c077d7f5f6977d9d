"""Journal records folded into a State: the only way a state comes about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kupgrade.errors import NeedsHumanError
from kupgrade.model.codec import decode
from kupgrade.model.plan import Plan
from kupgrade.model.record import RELEASED, Outcome, Record, RecordKind, State, StepState, StepStatus
from kupgrade.model.schedule import Terms

# Data of a STARTED record whose before-image could not be taken: nothing was done, so nothing is to be undone.
UNOBSERVED = "unobserved"


def fold(records: Sequence[Record]) -> State:
    """The state that `records` (in order, first one PLANNED) describe.

    Raises NeedsHumanError when they contradict each other: a half-known state is never guessed.
    """
    if not records or records[0].kind is not RecordKind.PLANNED:
        raise NeedsHumanError("The journal does not begin with a plan", "its first record is missing or another")
    first = records[0]
    plan = decode(Plan, first.data.get("plan"), "journal.plan")
    state = State(
        plan=plan,
        epoch=first.epoch,
        boot_id=first.boot_id,
        steps=(StepState(),) * len(plan.steps),
        last_seq=first.seq,
        terms=decode(Terms, first.data.get("terms", {}), "journal.terms"),
    )
    return _with_all(state, records[1:]) if len(records) > 1 else state


def _with_all(state: State, records: Sequence[Record]) -> State:
    """As `apply` of each in turn, in a fraction of the time: an agent folds while the workloads stand still."""
    steps, epoch = list(state.steps), state.epoch
    for record in records:
        _check_authority(epoch, record)
        epoch = record.epoch
        if record.step is None:
            state = replace(state, **_changes(state, record))
        else:
            index, changed = _changed_step(steps, record)
            steps[index] = changed
    return replace(state, steps=tuple(steps), epoch=epoch, last_seq=records[-1].seq)


def apply(state: State, record: Record) -> State:
    """One record on top of a state; raises NeedsHumanError when it does not fit."""
    _check_authority(state.epoch, record)
    if record.step is None:
        return replace(state, epoch=record.epoch, last_seq=record.seq, **_changes(state, record))
    index, changed = _changed_step(state.steps, record)
    steps = (*state.steps[:index], changed, *state.steps[index + 1 :])
    return replace(state, epoch=record.epoch, last_seq=record.seq, steps=steps)


def _check_authority(epoch: int, record: Record) -> None:
    if record.epoch < epoch:
        raise NeedsHumanError("The journal holds a record of a dead authority", f"epoch {record.epoch} after {epoch}")


def _changes(state: State, record: Record) -> dict[str, Any]:
    """By a record of the upgrade as a whole; of the state neither steps nor epoch count."""
    match record.kind:
        case RecordKind.CROSSED:
            return {"crossed": True, "boot_id": record.boot_id}
        case RecordKind.FELL_BACK:
            return {
                "fell_back": True,
                "fall_backs": state.fall_backs + 1,
                "undoing": not state.committed,
                "boot_id": record.boot_id,
                "undo_reason": state.undo_reason or str(record.data.get("reason", "")),
                "undo_by": state.undo_by or "machine",
            }
        case RecordKind.UNDO_REQUESTED:
            return {
                "undoing": True,
                "undo_reason": state.undo_reason or str(record.data.get("reason", "")),
                "undo_by": state.undo_by or str(record.data.get("by", "")),
            }
        case RecordKind.REENTERING:
            return {"reentries": state.reentries + 1}
        case RecordKind.COMMITTED:
            return {"committed": True}
        case RecordKind.COLD:
            return {
                "cold": True,
                "boot_id": record.boot_id,
                "cold_release": str(record.data.get("release", "")),
            }
        case RecordKind.FINISHED:
            return {"outcome": _outcome(record)}
        case RecordKind.HANDS_OFF:
            return {"hands_off": str(record.data.get("reason", ""))}
        case RecordKind.NOTE:
            if RELEASED not in record.data:
                return {}
            at_once = state.terms.at_once or record.data.get("at_once") is True
            return {"terms": replace(state.terms, hold=False, at_once=at_once)}
    raise NeedsHumanError("The journal holds a record out of place", record.kind.value)


def _outcome(record: Record) -> Outcome:
    try:
        return Outcome(record.data.get("outcome"))
    except ValueError as error:
        raise NeedsHumanError("The journal ends with an outcome that does not exist", str(error)) from None


def _changed_step(steps: Sequence[StepState], record: Record) -> tuple[int, StepState]:
    """Which step a record is of, and what has become of it."""
    index = record.step
    if index is None or not 0 <= index < len(steps):
        raise NeedsHumanError("The journal names a step that the plan does not have", str(index))
    old = steps[index]
    match record.kind:
        case RecordKind.STARTED:
            new = replace(
                old,
                status=StepStatus.STARTED,
                boot_id=record.boot_id,
                before=_first_before(old, record),
                attempts=old.attempts + 1,
            )
        case RecordKind.DONE:
            new = replace(old, status=StepStatus.DONE)
        case RecordKind.FAILED:
            undoing = old.status is StepStatus.UNDO_STARTED
            new = replace(
                old,
                failures=old.failures + (not undoing),
                undo_failures=old.undo_failures + undoing,
                error=_error(old, str(record.data.get("error", "")), undoing=undoing),
            )
        case RecordKind.UNDO_STARTED:
            new = replace(old, status=StepStatus.UNDO_STARTED, undo_boot_id=_undo_boot(old, record))
        case RecordKind.UNDONE:
            new = replace(old, status=StepStatus.UNDONE, undo_boot_id=_undo_boot(old, record))
        case _:
            raise NeedsHumanError("The journal holds a record out of place", record.kind.value)
    return index, new


def _error(old: StepState, said: str, *, undoing: bool) -> str:
    """Of an undo that is tried again the first error stays in front: the next ones may only follow from it."""
    first = old.error if undoing and old.undo_failures else ""
    return f"{first}; then {said}" if first and said not in first else first or said


def _first_before(old: StepState, record: Record) -> Mapping[str, Any]:
    """The first before-image is the one before any effect; a second attempt must not overwrite it."""
    if old.before is None or old.boot_id != record.boot_id or UNOBSERVED in old.before:
        return record.data
    return old.before


def _undo_boot(old: StepState, record: Record) -> str:
    """The boot of the undo. One begun in the boot of the effect stays so: what it withdrew never counts again."""
    return old.undo_boot_id if old.undo_boot_id and old.undo_boot_id == old.boot_id else record.boot_id

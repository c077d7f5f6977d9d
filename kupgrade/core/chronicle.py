"""What one journal says about its upgrade: for the history, and whether to try a release again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kupgrade.core.fold import fold
from kupgrade.core.stakes import HAND_OVER, SOAK, crossing_of, step_index
from kupgrade.model.descriptors import HOLD, LOST, RETURN, RETURNED
from kupgrade.model.record import Record, RecordKind, State, StepStatus

OPERATOR = "operator"  # `by` of an UNDO_REQUESTED record: a person asked
BLACKOUT = "blackout"  # key of a NOTE record: workload -> seconds
HANDOVER = "handover"  # key of a NOTE record: part of the handover -> seconds from its begin to the part's end


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One upgrade. `outcome`: committed, rolled-back, open, hands-off, abandoned, damaged; times since 1970.

    `setback`: a step failed, or a person took it back; not so when only something else had come between.
    """

    upgrade: str
    outcome: str
    reason: str = ""
    old_release: str = ""
    new_release: str = ""
    engine: str = ""
    store: str = ""
    started: float = 0.0
    finished: float | None = None
    blackout: Mapping[str, float] = field(default_factory=dict)  # workload -> seconds
    setback: bool = False
    lost: Mapping[str, str] = field(default_factory=dict)  # stored descriptor -> why it did not come through
    predicted: Mapping[str, float] = field(default_factory=dict)  # workload -> seconds, by its own figures alone


def entry(records: Sequence[Record]) -> HistoryEntry:
    """The history entry of one journal; raises NeedsHumanError when its records make no sense."""
    state = fold(records)
    plan = state.plan
    last = records[-1]
    finished = [record.time for record in records if record.kind is RecordKind.FINISHED]
    return HistoryEntry(
        upgrade=str(plan.upgrade),
        outcome=outcome_word(state),
        reason=state.hands_off or state.undo_reason,
        old_release=plan.old_release,
        new_release=plan.new_release,
        engine=plan.engine,
        store=plan.store,
        started=records[0].time,
        finished=finished[-1] if finished else (last.time if state.hands_off else None),
        blackout=blackouts(records),
        lost=lost_descriptors(records, state),
        predicted={each.workload: round(each.plain, 3) for each in plan.budgets},
        setback=state.undo_by == OPERATOR or any(record.kind is RecordKind.FAILED for record in records),
    )


def damaged_entry(name: str, why: str) -> HistoryEntry:
    """The entry of a journal that cannot be read."""
    return HistoryEntry(upgrade=name, outcome="damaged", reason=why)


def outcome_word(state: State) -> str:
    """committed, rolled-back, hands-off or open."""
    if state.outcome is not None:
        return state.outcome.value
    return "hands-off" if state.hands_off else "open"


def blackouts(records: Sequence[Record]) -> Mapping[str, float]:
    """Measured blackout of each workload in seconds, from NOTE records."""
    measured: dict[str, float] = {}
    for record in records:
        figures = record.data.get(BLACKOUT) if record.kind is RecordKind.NOTE else None
        if isinstance(figures, Mapping):
            measured.update({str(name): float(value) for name, value in figures.items()})
    return measured


def lost_descriptors(records: Sequence[Record], state: State) -> Mapping[str, str]:
    """Stored descriptors that a crossing cost, and why; none as long as nothing was to come out of one."""
    held: dict[str, str] = {}
    found: dict[str, str] = {}
    for record in records:
        kind = "" if record.step is None else state.plan.steps[record.step].kind
        if (kind, record.kind) == (HOLD, RecordKind.DONE):
            held = _lost(record)
        elif (kind, record.kind) in ((HOLD, RecordKind.UNDONE), (RETURN, RecordKind.DONE)):
            came = any(str(value) == RETURNED or str(value).startswith(LOST) for value in record.data.values())
            found = {**held, **_lost(record)} if came else found
    return found


def _lost(record: Record) -> dict[str, str]:
    told = {name: str(value) for name, value in record.data.items()}
    return {name: value.removeprefix(LOST) for name, value in told.items() if value.startswith(LOST)}


def _fell_in_soak(state: State) -> str:
    soak = step_index(state, SOAK)
    unfinished = soak is not None and state.steps[soak].status is not StepStatus.DONE
    back = state.cold and state.cold_release == state.plan.old_release
    return "the machine restarted in its soak time" if unfinished and back else ""


def rejection(records: Sequence[Record]) -> str:
    """Why the new release must not be tried again unasked; empty when this journal does not speak against it.

    It does, too, when it did not last its soak time: the machine restarted and runs the old release again.
    It does when the machine left the old kernel by our crossing and the way led back, unless a person had asked for
    that before anything crossed: a failure in the old kernel says nothing about the new one.
    """
    if not records:
        return ""
    state = fold(records)
    if state.committed:
        return _fell_in_soak(state)
    cross = crossing_of(state)
    # Beside the old kernel the claim is written on a snapshot that goes: what stays is the handover that failed.
    beside = cross is not None and state.plan.steps[cross].kind == HAND_OVER and state.steps[cross].failures > 0
    left = beside or any(record.kind in (RecordKind.CROSSED, RecordKind.FELL_BACK) for record in records)
    armed = left and any(record.kind is RecordKind.STARTED and record.step == cross for record in records)
    if cross is None or not armed or not (state.undoing or state.fell_back or state.hands_off):
        return ""
    for record in records:
        if record.kind in (RecordKind.CROSSED, RecordKind.FELL_BACK):
            break
        if record.kind is RecordKind.UNDO_REQUESTED and record.data.get("by") == OPERATOR:
            return ""
    return state.undo_reason or state.hands_off or "it was rolled back"

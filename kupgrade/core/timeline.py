"""Records as a timeline: one line each for people, one object each for machines, and the verdict of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kupgrade.core.fold import fold
from kupgrade.core.stakes import FREEZE, step_index
from kupgrade.errors import ExitCode
from kupgrade.model.plan import Plan
from kupgrade.model.record import Outcome, Record, RecordKind

PROGRESS_FORMAT = "kupgrade.progress/1"

_EVENTS = {
    RecordKind.PLANNED: "planned",
    RecordKind.STARTED: "begin",
    RecordKind.DONE: "done",
    RecordKind.FAILED: "FAILED",
    RecordKind.UNDO_REQUESTED: "rolling back",
    RecordKind.UNDO_STARTED: "undo",
    RecordKind.UNDONE: "undone",
    RecordKind.CROSSED: "the new kernel has taken over",
    RecordKind.FELL_BACK: "the old release has taken over again",
    RecordKind.REENTERING: "starting the old release once more",
    RecordKind.COMMITTED: "committed",
    RecordKind.COLD: "the workloads start in the ordinary way",
    RecordKind.FINISHED: "finished",
    RecordKind.HANDS_OFF: "hands off, a person is needed",
    RecordKind.NOTE: "measured",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One record told: `elapsed` seconds since the plan was recorded; `number` counts steps from 1, 0 for none."""

    event: str
    time: float
    elapsed: float
    number: int
    of: int
    step: str
    describe: str
    detail: str
    boot_id: str
    format: str = PROGRESS_FORMAT


def event(record: Record, plan: Plan, began: float) -> Event:
    """One record as an event; `began` is the time of the first record."""
    spec = plan.steps[record.step] if record.step is not None and 0 <= record.step < len(plan.steps) else None
    return Event(
        event=record.kind.value,
        time=record.time,
        elapsed=round(record.time - began, 3),
        number=0 if record.step is None else record.step + 1,
        of=len(plan.steps),
        step=spec.kind if spec else "",
        describe=spec.describe if spec else "",
        detail=_detail(record),
        boot_id=record.boot_id,
    )


def _detail(record: Record) -> str:
    data = record.data
    match record.kind:
        case RecordKind.FAILED:
            return str(data.get("error", ""))
        case RecordKind.DONE | RecordKind.UNDONE | RecordKind.NOTE:
            return ", ".join(f"{key} {_figure(value)}" for key, value in data.items())
        case RecordKind.STARTED | RecordKind.PLANNED:
            return ""
    return str(data.get("reason") or data.get("release") or data.get("outcome") or "")


def _figure(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_figure(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def event_text(found: Event) -> str:
    """One line: elapsed seconds, step number, what."""
    word = _EVENTS[RecordKind(found.event)]
    text = f"{word}: {found.describe}" if found.describe else word
    if found.detail:
        text += f" ({found.detail})"
    place = f"[{found.number}/{found.of}] " if found.number else ""
    return f"{found.elapsed:8.1f} s  {place}{text}"


def timeline(records: Sequence[Record]) -> tuple[Event, ...]:
    """All records as events; raises NeedsHumanError when they make no sense."""
    plan = fold(records).plan
    return tuple(event(record, plan, records[0].time) for record in records)


def froze(records: Sequence[Record]) -> bool:
    """Whether the freeze was ever begun: from then on workloads may have stood still."""
    freeze = step_index(fold(records), FREEZE)
    return any(record.kind is RecordKind.STARTED and record.step == freeze for record in records)


def verdict(records: Sequence[Record]) -> ExitCode:
    """The exit code of an upgrade that is over or needs a person; INTERRUPTED while it goes on.

    A failure before the freeze leaves the old kernel untouched and is told by its own code; an operator's wish
    fulfilled, or anything undone after the freeze, is a clean rollback.
    """
    state = fold(records)
    if state.outcome is Outcome.COMMITTED:
        return ExitCode.DONE
    if state.outcome is None:
        return ExitCode.NEEDS_HUMAN if state.hands_off else ExitCode.INTERRUPTED
    if froze(records):
        return ExitCode.ROLLED_BACK
    back = (RecordKind.UNDO_REQUESTED, RecordKind.FELL_BACK)  # what fails behind them is an undo
    until = next((at for at, record in enumerate(records) if record.kind in back), len(records))
    failed = next((record for record in records[:until] if record.kind is RecordKind.FAILED), None)
    if failed is None:
        return ExitCode.ROLLED_BACK
    code = failed.data.get("code")
    known = (ExitCode.REFUSED, ExitCode.OVER_BUDGET, ExitCode.NOT_NOW)
    return ExitCode(code) if code in known else ExitCode.FAILED

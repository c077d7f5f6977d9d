"""How long the workloads did not run, as a note in the journal."""

from __future__ import annotations

from kupgrade.core.chronicle import BLACKOUT, HANDOVER
from kupgrade.journal import Journal
from kupgrade.machine import standing
from kupgrade.machine.places import Places
from kupgrade.model.plan import Plan
from kupgrade.model.record import Record, RecordKind, State


def note(journal: Journal, plan: Plan, record: Record, state: State, places: Places) -> Record | None:
    """Record how long the workloads did not run, once they do again (wall clock: it goes on over the crossing)."""
    ends = (("thaw", RecordKind.DONE), ("freeze", RecordKind.UNDONE))
    if record.step is None or (plan.steps[record.step].kind, record.kind) not in ends:
        return None
    frozen = [
        r.time
        for r in journal.records
        if r.step is not None and r.kind is RecordKind.STARTED and plan.steps[r.step].kind == "freeze"
    ]
    if not frozen:
        return None
    seconds = round(record.time - frozen[0], 3)
    data: dict[str, object] = {BLACKOUT: {budget.workload: seconds for budget in plan.budgets}}
    marks = standing.marks(places) if state.crossed and not state.undoing else ()
    if marks and marks[0].time >= frozen[0]:
        begun = marks[0].time
        data[HANDOVER] = {mark.what: round(mark.time - begun, 3) for mark in marks[1:]}
    at = (record.boot_id, state.epoch, record.time, record.uptime)
    note = Record(journal.next_seq, RecordKind.NOTE, *at, data=data)
    journal.append(note, durable=False)
    return note

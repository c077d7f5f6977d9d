"""The loop: decide, record, act, verify, record. It knows no step and no engine."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kupgrade.core.fold import fold
from kupgrade.core.recovery import Action, Decision, decide, images_valid
from kupgrade.errors import KupgradeError, NeedsHumanError
from kupgrade.model.codec import decode, encode
from kupgrade.model.plan import Plan
from kupgrade.model.record import Now, Outcome, Record, RecordKind, State, Verdict
from kupgrade.steps.base import Step, UndoContext, load


class Clock(Protocol):
    """Time of day (seconds since the epoch) and CLOCK_BOOTTIME seconds."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def uptime(self) -> float:
        """Seconds since boot."""
        ...


class Log(Protocol):
    """Where records go; `Journal` is the real one."""

    @property
    def records(self) -> tuple[Record, ...]:
        """Everything recorded so far."""
        ...

    @property
    def next_seq(self) -> int:
        """The next sequence number."""
        ...

    def append(self, record: Record) -> None:
        """Durable when it returns."""
        ...


# Data of a STARTED record whose before-image could not be taken: nothing was done, so nothing is to be undone.
UNOBSERVED = "unobserved"


def no_faults(_step: str, _moment: str) -> None:
    """Production: nothing is injected."""


@dataclass(frozen=True, slots=True)
class Loop:
    """All that `advance` needs. `faults(step, moment)` is called at every crash window; `now()` asks the machine."""

    log: Log
    host: Any
    now: Callable[[State], Now]
    clock: Clock
    faults: Callable[[str, str], None] = no_faults
    watch: Callable[[Record, State], None] = field(default=lambda _record, _state: None)
    interrupted: Callable[[], str] = field(default=lambda: "")


def start(loop: Loop, plan: Plan, boot_id: str, epoch: int = 1) -> State:
    """Record the plan: from here on the journal answers every question."""
    _append(loop, RecordKind.PLANNED, epoch, boot_id, data={"plan": encode(plan), "digest": plan.digest})
    return fold(loop.log.records)


def advance(loop: Loop) -> State:
    """Go on until the upgrade is over, or a human is needed, or this kernel ends."""
    while True:
        state = fold(loop.log.records)
        now = loop.now(state)
        decision = decide(state, now)
        reason = "" if state.undoing or state.committed else loop.interrupted()
        if reason and decision.action in (Action.RUN, Action.VERIFY, Action.COMMIT):
            decision = Decision(Action.REQUEST_UNDO, reason)
        if decision.action in (Action.NOTHING, Action.ASK_HUMAN):
            return _stop(loop, state, now, decision)
        _act(loop, state, now, decision)


def _stop(loop: Loop, state: State, now: Now, decision: Decision) -> State:
    if decision.action is Action.ASK_HUMAN and not state.hands_off:
        _append(loop, RecordKind.HANDS_OFF, state.epoch, now.boot_id, data={"reason": decision.why})
        return fold(loop.log.records)
    return state


def _act(loop: Loop, state: State, now: Now, decision: Decision) -> None:
    def record(kind: RecordKind, epoch: int = state.epoch, **data: Any) -> None:
        _append(loop, kind, epoch, now.boot_id, data=data)

    match decision.action:
        case Action.RUN if decision.step is not None:
            _run(loop, state, now, decision.step)
        case Action.VERIFY if decision.step is not None:
            _verify_open(loop, state, now, decision.step)
        case Action.UNDO if decision.step is not None:
            _undo(loop, state, now, decision.step)
        case Action.REQUEST_UNDO:
            record(RecordKind.UNDO_REQUESTED, reason=decision.why, by="kupgrade")
        case Action.CLAIM:
            record(RecordKind.CROSSED, state.epoch + 1, release=now.release)
        case Action.FALL_BACK:
            record(RecordKind.FELL_BACK, state.epoch + 1, release=now.release, reason=decision.why)
        case Action.COLD:
            record(RecordKind.COLD, state.epoch + 1, release=now.release, reason=decision.why)
        case Action.COMMIT:
            loop.faults("commit", "intent")
            record(RecordKind.COMMITTED)
            loop.faults("commit", "effect")
        case Action.REENTER:
            record(RecordKind.REENTERING, reason=decision.why)
            loop.host.reenter(state.plan)
        case Action.FINISH if decision.outcome is not None:
            record(RecordKind.FINISHED, outcome=decision.outcome.value)
        case _:
            raise NeedsHumanError("No way to act on a decision", decision.action.value)


def _run(loop: Loop, state: State, now: Now, index: int) -> None:
    spec = state.plan.steps[index]
    step = load(spec)
    stored = state.steps[index]
    try:
        if stored.before is not None and stored.boot_id == now.boot_id:
            before: Any = decode(step.before, dict(stored.before), f"journal.{spec.kind}")
        else:
            before = step.observe(loop.host)
    except KupgradeError as error:
        # Nothing was touched yet, but the step must be seen as begun, or it would be tried for ever.
        _append(loop, RecordKind.STARTED, state.epoch, now.boot_id, index, {UNOBSERVED: True})
        _failed(loop, state, now, index, error)
        return
    _append(loop, RecordKind.STARTED, state.epoch, now.boot_id, index, encode(before))
    loop.faults(spec.kind, "intent")
    _do(loop, state, now, index, step, before)


def _do(loop: Loop, state: State, now: Now, index: int, step: Step, before: Any) -> None:
    begun = loop.clock.uptime()
    try:
        figures = dict(step.do(loop.host, before) or {})
        loop.faults(step.kind, "effect")
        verdict = step.verify(loop.host, before)
    except KupgradeError as error:
        _failed(loop, state, now, index, error)
        return
    if verdict is not Verdict.DONE:
        why = f"asked afterwards, the machine says {verdict.value}"
        _failed(loop, state, now, index, KupgradeError(f"{step.kind} did not take effect", why))
        return
    figures["seconds"] = round(loop.clock.uptime() - begun, 4)
    _append(loop, RecordKind.DONE, state.epoch, now.boot_id, index, figures)


def _verify_open(loop: Loop, state: State, now: Now, index: int) -> None:
    spec = state.plan.steps[index]
    step = load(spec)
    try:
        before: Any = decode(step.before, dict(state.steps[index].before or {}), f"journal.{spec.kind}")
        verdict = step.verify(loop.host, before)
    except KupgradeError as error:
        _failed(loop, state, now, index, error)
        return
    match verdict:
        case Verdict.DONE:
            _append(loop, RecordKind.DONE, state.epoch, now.boot_id, index, {"found": "done"})
        case Verdict.NOT_DONE if state.steps[index].attempts < 2 or state.committed:
            _run(loop, state, now, index)
        case _:
            why = f"asked afterwards, the machine says {verdict.value}"
            _failed(loop, state, now, index, KupgradeError(f"{spec.kind} was interrupted", why))


def _undo(loop: Loop, state: State, now: Now, index: int) -> None:
    spec = state.plan.steps[index]
    step = load(spec)
    stored = state.steps[index]
    context = UndoContext(
        same_boot=stored.boot_id == now.boot_id,
        in_new_kernel=state.crossed and not state.fell_back,
        images_valid=images_valid(state),
    )
    _append(loop, RecordKind.UNDO_STARTED, state.epoch, now.boot_id, index)
    loop.faults(spec.kind, "undo-intent")
    begun = loop.clock.uptime()
    try:
        if stored.before is not None and UNOBSERVED not in stored.before:
            before: Any = decode(step.before, dict(stored.before), f"journal.{spec.kind}")
            step.undo(loop.host, before, context)
        loop.faults(spec.kind, "undo-effect")
    except KupgradeError as error:
        _failed(loop, state, now, index, error)
        return
    seconds = round(loop.clock.uptime() - begun, 4)
    _append(loop, RecordKind.UNDONE, state.epoch, now.boot_id, index, {"seconds": seconds})


def _failed(loop: Loop, state: State, now: Now, index: int, error: KupgradeError) -> None:
    data: dict[str, Any] = {"error": str(error), **error.to_json()}
    if error.__cause__ is not None:
        data["cause"] = "".join(traceback.format_exception_only(error.__cause__)).strip()
    _append(loop, RecordKind.FAILED, state.epoch, now.boot_id, index, data)


def _append(
    loop: Loop,
    kind: RecordKind,
    epoch: int,
    boot_id: str,
    step: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    record = Record(
        seq=loop.log.next_seq,
        kind=kind,
        boot_id=boot_id,
        epoch=epoch,
        time=round(loop.clock.time(), 6),
        uptime=round(loop.clock.uptime(), 6),
        step=step,
        data=data or {},
    )
    loop.log.append(record)
    loop.watch(record, fold(loop.log.records))


def over(state: State) -> Outcome | None:
    """The outcome, or None while the upgrade is open."""
    return state.outcome

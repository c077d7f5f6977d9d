"""The loop: decide, record, act, verify, record. It knows no step and no engine."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from kupgrade.core.chronicle import OPERATOR
from kupgrade.core.fold import UNOBSERVED, apply, fold
from kupgrade.core.recovery import MAX_ATTEMPTS, Action, Decision, decide
from kupgrade.core.stakes import crossing_of, images_valid
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

    def append(self, record: Record, *, durable: bool = True) -> None:
        """Durable when it returns, or else with the next one that is, or with `sync`."""
        ...

    def sync(self) -> None:
        """Everything recorded so far is durable."""
        ...


# `by` of an UNDO_REQUESTED record.
BY_TOOL = "kupgrade"

# An intent is on disk before anything is done; that something was done needs not be, for the intent behind it takes it
# along: a crash in between finds the step begun, and asks the machine. Each flush costs a moment of the blackout.
LAZY = frozenset((RecordKind.DONE, RecordKind.NOTE))

_INTERRUPTIBLE = (Action.RUN, Action.VERIFY, Action.COMMIT, Action.STAND, Action.WAIT, Action.REQUEST_UNDO)


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
    leaves: frozenset[str] = frozenset()  # kinds of steps that this process leaves to another one


def start(loop: Loop, plan: Plan, boot_id: str, epoch: int = 1) -> State:
    """Record the plan: from here on the journal answers every question."""
    data = {"plan": encode(plan), "digest": plan.digest}
    record = _record(loop, RecordKind.PLANNED, epoch, boot_id, None, data)
    loop.log.append(record)
    state = fold(loop.log.records)
    _tell(loop, record, state)
    return state


def advance(loop: Loop, state: State | None = None) -> State:
    """Go on until the upgrade is over, or a human is needed, or this kernel ends, or an instance stands.

    Or until it waits, or comes to a step that is left to another process. `state`: the fold of all records, if known.
    """
    state = state or fold(loop.log.records)
    while True:
        now = loop.now(state)
        decision = decide(state, now)
        by = BY_TOOL
        reason = "" if state.undoing or state.committed else loop.interrupted()
        if reason and decision.action in _INTERRUPTIBLE:
            decision, by = Decision(Action.REQUEST_UNDO, reason), OPERATOR
        if decision.action in (Action.NOTHING, Action.ASK_HUMAN, Action.STAND, Action.WAIT) or _left(
            loop, state, decision
        ):
            loop.log.sync()
            return _stop(loop, state, now, decision)
        state = _act(loop, state, now, decision, by)


def _left(loop: Loop, state: State, decision: Decision) -> bool:
    if decision.action not in (Action.RUN, Action.VERIFY) or decision.step is None:
        return False
    return spec_kind(state, decision.step) in loop.leaves


def _stop(loop: Loop, state: State, now: Now, decision: Decision) -> State:
    if decision.action is Action.ASK_HUMAN and not state.hands_off:
        return _append(loop, state, now, RecordKind.HANDS_OFF, data={"reason": decision.why})
    return state


def _act(loop: Loop, state: State, now: Now, decision: Decision, by: str) -> State:
    """Each action ends in at least one record; the state with it is returned."""

    def record(kind: RecordKind, epoch: int = state.epoch, **data: Any) -> State:
        return _append(loop, replace(state, epoch=epoch), now, kind, data=data)

    match decision.action:
        case Action.RUN if decision.step is not None:
            return _run(loop, state, now, decision.step)
        case Action.VERIFY if decision.step is not None:
            return _verify_open(loop, state, now, decision.step)
        case Action.UNDO if decision.step is not None:
            return _undo(loop, state, now, decision.step)
        case Action.REQUEST_UNDO:
            return record(RecordKind.UNDO_REQUESTED, reason=decision.why, by=by)
        case Action.CLAIM if (crossing := crossing_of(state)) is not None:
            loop.faults(spec_kind(state, crossing), "effect")
            return record(RecordKind.CROSSED, state.epoch + 1, release=now.release)
        case Action.FALL_BACK:
            return record(RecordKind.FELL_BACK, state.epoch + 1, release=now.release, reason=decision.why)
        case Action.COLD:
            return record(RecordKind.COLD, state.epoch + 1, release=now.release, reason=decision.why)
        case Action.COMMIT:
            loop.faults("commit", "intent")
            state = record(RecordKind.COMMITTED)
            loop.faults("commit", "effect")
            return state
        case Action.REENTER:
            state = record(RecordKind.REENTERING, reason=decision.why)
            loop.host.reenter(state.plan)
            return state
        case Action.FINISH if decision.outcome is not None:
            return record(RecordKind.FINISHED, outcome=decision.outcome.value)
    raise NeedsHumanError("No way to act on a decision", decision.action.value)


def _run(loop: Loop, state: State, now: Now, index: int) -> State:
    spec = state.plan.steps[index]
    step = load(spec)
    stored = state.steps[index]
    try:
        if stored.before is not None and stored.boot_id == now.boot_id and UNOBSERVED not in stored.before:
            before: Any = decode(step.before, dict(stored.before), f"journal.{spec.kind}")
        else:
            before = step.observe(loop.host)
    except Exception as error:
        # Nothing was touched yet, but the step must be seen as begun, or it would be tried for ever.
        state = _append(loop, state, now, RecordKind.STARTED, index, {UNOBSERVED: True})
        return _failed(loop, state, now, index, as_kupgrade_error(spec.kind, error))
    state = _append(loop, state, now, RecordKind.STARTED, index, encode(before))
    return _do(loop, state, now, index, step, before)


def _do(loop: Loop, state: State, now: Now, index: int, step: Step, before: Any) -> State:
    begun = loop.clock.uptime()
    try:
        loop.faults(step.kind, "intent")
        figures = dict(step.do(loop.host, before) or {})
        loop.faults(step.kind, "effect")
        verdict = step.verify(loop.host, before)
    except Exception as error:  # recorded and acted upon, whatever it is: a half-done step must never be lost sight of
        return _failed(loop, state, now, index, as_kupgrade_error(spec_kind(state, index), error))
    if verdict is not Verdict.DONE:
        why = f"asked afterwards, the machine says {verdict.value}"
        return _failed(loop, state, now, index, KupgradeError(f"{step.kind} did not take effect", why))
    figures["seconds"] = round(loop.clock.uptime() - begun, 4)
    return _append(loop, state, now, RecordKind.DONE, index, figures)


def _verify_open(loop: Loop, state: State, now: Now, index: int) -> State:
    spec = state.plan.steps[index]
    step = load(spec)
    stored = dict(state.steps[index].before or {})
    if UNOBSERVED in stored and not state.undoing:
        return _run(loop, state, now, index)
    try:
        before: Any = decode(step.before, stored, f"journal.{spec.kind}")
        verdict = step.verify(loop.host, before)
    except Exception as error:  # recorded and acted upon, whatever it is: a half-done step must never be lost sight of
        return _failed(loop, state, now, index, as_kupgrade_error(spec_kind(state, index), error))
    if verdict is Verdict.DONE:
        return _append(loop, state, now, RecordKind.DONE, index, {"found": "done"})
    again = not state.undoing and (state.steps[index].attempts < MAX_ATTEMPTS or state.committed)
    if verdict is Verdict.NOT_DONE and again:
        return _run(loop, state, now, index)
    why = f"asked afterwards, the machine says {verdict.value}"
    return _failed(loop, state, now, index, KupgradeError(f"{spec.kind} was interrupted", why))


def _undo(loop: Loop, state: State, now: Now, index: int) -> State:
    spec = state.plan.steps[index]
    step = load(spec)
    stored = state.steps[index]
    context = UndoContext(
        same_boot=stored.boot_id == now.boot_id,
        in_new_kernel=state.crossed and not state.fell_back,
        images_valid=images_valid(state),
    )
    state = _append(loop, state, now, RecordKind.UNDO_STARTED, index)
    begun = loop.clock.uptime()
    figures: dict[str, Any] = {}
    try:
        loop.faults(spec.kind, "undo-intent")
        if stored.before is not None and UNOBSERVED not in stored.before:
            before: Any = decode(step.before, dict(stored.before), f"journal.{spec.kind}")
            figures = dict(step.undo(loop.host, before, context) or {})
        loop.faults(spec.kind, "undo-effect")
    except Exception as error:  # recorded and acted upon, whatever it is: a half-done step must never be lost sight of
        return _failed(loop, state, now, index, as_kupgrade_error(spec_kind(state, index), error))
    figures["seconds"] = round(loop.clock.uptime() - begun, 4)
    return _append(loop, state, now, RecordKind.UNDONE, index, figures)


def spec_kind(state: State, index: int) -> str:
    """The kind of one of the plan's steps."""
    return state.plan.steps[index].kind


def as_kupgrade_error(kind: str, error: Exception) -> KupgradeError:
    """Any exception of a step as what, why and remedy; one that is not ours is told as unexpected."""
    if isinstance(error, KupgradeError):
        return error
    if isinstance(error, OSError):
        return KupgradeError(f"{kind} failed", f"{error.strerror or error} ({error.filename or 'no path'})")
    wrapped = KupgradeError(f"{kind} failed unexpectedly", f"{type(error).__name__}: {error}", "Please report this")
    wrapped.__cause__ = error
    return wrapped


def _failed(loop: Loop, state: State, now: Now, index: int, error: KupgradeError) -> State:
    data: dict[str, Any] = {"error": str(error), **error.to_json()}
    if error.__cause__ is not None:
        data["cause"] = "".join(traceback.format_exception_only(error.__cause__)).strip()
    return _append(loop, state, now, RecordKind.FAILED, index, data)


def _append(
    loop: Loop, state: State, now: Now, kind: RecordKind, step: int | None = None, data: Mapping[str, Any] | None = None
) -> State:
    """Record in the state's epoch, then fold: the state is `apply` over the records, whoever did it last."""
    record = _record(loop, kind, state.epoch, now.boot_id, step, data)
    loop.log.append(record, durable=kind not in LAZY)
    state = apply(state, record)
    _tell(loop, record, state)
    return state


def _tell(loop: Loop, record: Record, state: State) -> None:
    """To whoever watches. That nobody reads any more, or cannot show it, stops no loop: it is in the journal."""
    with contextlib.suppress(OSError, ValueError):
        loop.watch(record, state)


def _record(
    loop: Loop, kind: RecordKind, epoch: int, boot_id: str, step: int | None, data: Mapping[str, Any] | None
) -> Record:
    return Record(
        seq=loop.log.next_seq,
        kind=kind,
        boot_id=boot_id,
        epoch=epoch,
        time=round(loop.clock.time(), 6),
        uptime=round(loop.clock.uptime(), 6),
        step=step,
        data=data or {},
    )


def over(state: State) -> Outcome | None:
    """The outcome, or None while the upgrade is open."""
    return state.outcome

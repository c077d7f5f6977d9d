"""What to do next: a pure, total function of the journal's state and of what runs now.

The same answer after Ctrl-C, a power cut, or in the new kernel. Three step kinds carry meaning here: `cross` passes
authority, `dump` makes the images that may be restored, `thaw` is the output commit (after its intent is on disk the
images are dead, whatever happened next). With a kernel beside this one authority passes by `hand-over`; `take-disk`,
the first write to what the old kernel has mounted, comes after the commit and before `thaw`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kupgrade.core.kinds import HELD_BEFORE, REPEATED, TAKE_DISK, makes_default
from kupgrade.core.stakes import (
    CROSS,
    DUMP,
    FREEZE,
    HAND_OVER,
    THAW,
    armed,
    crossing_of,
    images_valid,
    step_index,
    volatile,
)
from kupgrade.model.ids import Ticket
from kupgrade.model.instance import ENGINE as INSTANCE
from kupgrade.model.plan import Scope, Side
from kupgrade.model.record import Now, Outcome, State, StepStatus

MAX_ATTEMPTS = 2
MAX_UNDO_FAILURES = 3
MAX_FAILURES_AFTER_COMMIT = 3
MAX_REENTRIES = 3
MAX_FALL_BACKS = 3 + MAX_REENTRIES  # each start of the old release once more is followed by one


class Action(enum.Enum):
    """What the executor does next."""

    NOTHING = "nothing"  # the upgrade is over
    RUN = "run"  # observe, record, do, verify, record
    VERIFY = "verify"  # an open step: ask the machine
    REQUEST_UNDO = "request-undo"
    UNDO = "undo"
    CLAIM = "claim"  # new kernel: take authority with epoch + 1
    FALL_BACK = "fall-back"  # old release after the crossing, or a foreign reboot: take authority back
    REENTER = "reenter"  # start the old release once more with the workloads' PIDs kept free
    COMMIT = "commit"
    WAIT = "wait"  # prepared; nothing to do until it is let go on
    STAND = "stand"  # an instance runs; nothing to do until somebody asks for its end
    COLD = "cold"  # the images are dead: ordinary start, say so
    FINISH = "finish"
    ASK_HUMAN = "ask-human"


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, the step it concerns, and the reason in words."""

    action: Action
    why: str
    step: int | None = None
    outcome: Outcome | None = None


def decide(state: State, now: Now) -> Decision:
    """The next action. Total: every state and every `now` has an answer."""
    if state.outcome is not None:
        return Decision(Action.NOTHING, "the upgrade is over")
    if state.hands_off:
        return Decision(Action.ASK_HUMAN, state.hands_off)
    if now.boot_id == state.boot_id:
        return _same_boot(state, now)
    return _other_boot(state, now)


def _same_boot(state: State, now: Now) -> Decision:
    if state.undoing:
        return _undo_next(state, now)
    cross = crossing_of(state)
    for index, (step, spec) in enumerate(zip(state.steps, state.plan.steps, strict=True)):
        match step.status:
            case StepStatus.DONE:
                continue
            case StepStatus.UNDO_STARTED | StepStatus.UNDONE:
                return Decision(Action.ASK_HUMAN, f"{spec.kind} is undone but nobody asked for it", index)
            case StepStatus.STARTED if index == cross:
                if state.crossed:
                    continue
                why = f"{spec.kind} failed: {step.error}" if step.failures else "the crossing did not happen: same boot"
                return Decision(Action.REQUEST_UNDO, why, index)
            case StepStatus.STARTED if step.boot_id != now.boot_id:
                if spec.scope is Scope.BOOT and state.committed:
                    continue  # its effect died with that boot, and so did what it was for
                if _pointless(state, index):
                    continue
                return _try(state, index, f"{spec.kind} was begun in another boot")
            case StepStatus.STARTED | StepStatus.NEW if _pointless(state, index):
                continue
            case StepStatus.STARTED if step.failures:
                return _try(state, index, f"{spec.kind} failed once")
            case StepStatus.STARTED:
                return _open(state, index)
            case StepStatus.NEW:
                return _run_new(state, index)
    if state.plan.engine == INSTANCE:
        return Decision(Action.STAND, "it runs until somebody stops it")
    if not state.committed:
        return Decision(Action.COMMIT, "every step is done")
    return Decision(Action.FINISH, "every step is done", outcome=Outcome.COMMITTED)


def _open(state: State, index: int) -> Decision:
    """A step that was begun in this boot and not recorded as done."""
    kind = state.plan.steps[index].kind
    if kind in REPEATED:
        return _try(state, index, f"{kind} was begun, and what it did cannot all be seen")
    return Decision(Action.VERIFY, f"{kind} was begun and not recorded as done", index)


def _run_new(state: State, index: int) -> Decision:
    spec = state.plan.steps[index]
    side = state.plan.sides[index]
    if side is Side.NEW and not state.crossed:
        return Decision(Action.ASK_HUMAN, f"{spec.kind} belongs to the new kernel, which has not claimed", index)
    if side is Side.OLD and state.crossed:
        return Decision(Action.ASK_HUMAN, f"{spec.kind} belongs to the old kernel", index)
    if state.terms.hold and spec.kind in HELD_BEFORE:
        return Decision(Action.WAIT, "prepared as far as nobody notices; it waits to be let go on")
    if spec.kind in (TAKE_DISK, THAW) and not state.committed:
        return Decision(Action.COMMIT, "restored and verified in the dark")
    if state.cold and spec.scope is Scope.BOOT:
        return _skip_dead(state, index)
    return _try(state, index, "next step of the plan")


def _skip_dead(state: State, index: int) -> Decision:
    """After a reboot past the commit, BOOT-scope steps (thaw, kick) have nothing left to act on."""
    for later in range(index + 1, len(state.steps)):
        spec, step = state.plan.steps[later], state.steps[later]
        if spec.scope is Scope.BOOT or _pointless(state, later):
            continue
        if step.status is StepStatus.NEW or step.failures:
            return _try(state, later, "what outlives a reboot is still to be done")
        if step.status is StepStatus.STARTED:
            return _open(state, later)
    return Decision(Action.FINISH, "nothing is left that outlives a reboot", outcome=Outcome.COMMITTED)


def _pointless(state: State, index: int) -> bool:
    """After a cold start on another release than the new one, nothing speaks for making that the default."""
    return makes_default(state.plan.steps[index]) and state.cold and state.cold_release != state.plan.new_release


def _try(state: State, index: int, why: str) -> Decision:
    step = state.steps[index]
    allowed = MAX_FAILURES_AFTER_COMMIT if state.committed else 1
    if step.failures < allowed and (state.committed or step.attempts < MAX_ATTEMPTS):
        return Decision(Action.RUN, why, index)
    reason = f"{state.plan.steps[index].kind} failed: {step.error or 'twice begun, never done'}"
    if state.committed:
        return Decision(Action.ASK_HUMAN, reason + " (after the commit nothing is rolled back)", index)
    return Decision(Action.REQUEST_UNDO, reason, index)


def _undo_next(state: State, now: Now) -> Decision:
    if state.committed:
        return Decision(Action.ASK_HUMAN, "asked to undo after the commit; the way back is a new upgrade")
    if _must_reenter(state, now):
        return Decision(Action.REENTER, "processes of this boot hold PIDs that the workloads need")
    specs = state.plan.steps
    for index in reversed(range(len(state.steps))):
        step, spec = state.steps[index], specs[index]
        if step.status in (StepStatus.NEW, StepStatus.UNDONE):
            if not (spec.kind == DUMP and _restore_again(state, now)):
                continue
        elif not _undo_applies(state, index, now):
            continue
        if step.undo_failures >= MAX_UNDO_FAILURES:
            return Decision(Action.ASK_HUMAN, f"undoing {spec.kind} keeps failing: {step.error}", index)
        return Decision(Action.UNDO, state.undo_reason or "rolling back", index)
    return Decision(Action.FINISH, "everything is undone", outcome=Outcome.ROLLED_BACK)


def _restore_again(state: State, now: Now) -> bool:
    """Restored by an earlier undo, in a boot that ended before the restored copy was thawed: do it again."""
    index = step_index(state, DUMP)
    if index is None:
        return False
    step = state.steps[index]
    return step.status is StepStatus.UNDONE and step.undo_boot_id != now.boot_id and images_valid(state)


def _undo_applies(state: State, index: int, now: Now) -> bool:
    step, spec = state.steps[index], state.plan.steps[index]
    if spec.scope is not Scope.BOOT:
        return True
    # Effects of an earlier boot are gone with it; the crossing itself is undone only from the new kernel.
    if spec.kind in (CROSS, HAND_OVER):
        return step.boot_id == now.boot_id or (state.crossed and not state.fell_back)
    if spec.kind == FREEZE:
        # In a later boot its undo thaws the restored copies.
        return True
    return step.boot_id == now.boot_id


def _must_reenter(state: State, now: Now) -> bool:
    dump = step_index(state, DUMP)
    if dump is None or not state.fell_back or now.pids_free is not False or now.images is False:
        return False
    if state.reentries >= MAX_REENTRIES:  # more than one: the tool may be killed between the record and the jump
        return False
    step = state.steps[dump]
    restored_here = step.status is StepStatus.UNDONE and step.undo_boot_id == now.boot_id
    return images_valid(state) and not restored_here


def _other_boot(state: State, now: Now) -> Decision:
    plan = state.plan
    lost = (volatile(state) or now.images is False) and not _has_ticket(state, now)
    at_stake = state.committed or (images_valid(state) and not lost)
    if now.release not in (plan.old_release, plan.new_release) and at_stake:
        return Decision(Action.ASK_HUMAN, f"{now.release} runs, which is neither the old nor the new release")
    if state.committed:
        return Decision(Action.COLD, "the machine was restarted after the commit; the checkpoint is dead")
    if not armed(state) or not at_stake:
        # Never armed, or the rollback has let the workloads run again: whatever runs now can tidy up.
        if armed(state) and now.images is False and now.release == plan.old_release:
            return _fall_back(state, f"{_fall_back_reason(state)}; the images, in memory only, did not outlive that")
        return _foreign_reboot(state, now)
    if now.release == plan.old_release and not _has_ticket(state, now):
        return _fall_back(state, _fall_back_reason(state))
    if state.undoing or state.fell_back:
        return Decision(Action.ASK_HUMAN, "the new release runs although the rollback had begun")
    if state.crossed:
        return Decision(Action.ASK_HUMAN, "the new release was started a second time before the commit")
    if not _has_ticket(state, now):
        return Decision(Action.ASK_HUMAN, "the new release runs without the ticket of this upgrade")
    return Decision(Action.CLAIM, "the new release runs with the ticket of this upgrade")


def _has_ticket(state: State, now: Now) -> bool:
    if now.ticket is None:
        return False
    return now.ticket == str(Ticket(state.plan.upgrade, _armed_epoch(state)))


def _armed_epoch(state: State) -> int:
    """The epoch that the crossing put on the command line; each claim raises the journal's own by one."""
    index = crossing_of(state)
    before = state.steps[index].before if index is not None else None
    return int((before or {}).get("epoch", 1))


def _fall_back_reason(state: State) -> str:
    if state.undo_reason:
        return state.undo_reason
    if state.crossed:
        return "the new kernel ended before the commit"
    return "the new kernel did not come up; the machine started the old release"


def _foreign_reboot(state: State, now: Now) -> Decision:
    kept = images_valid(state) and not volatile(state) and now.images is not False
    if kept and now.release != state.plan.old_release:
        return Decision(Action.ASK_HUMAN, f"complete images exist, but {now.release} was started by somebody else")
    return _fall_back(state, "the machine was restarted by something else during the upgrade")


def _fall_back(state: State, why: str) -> Decision:
    """Unless it was done in so many boots that doing it may be what ends them: for ever is longer than any blackout."""
    if state.fall_backs >= MAX_FALL_BACKS:
        return Decision(Action.ASK_HUMAN, f"{why}; the rollback was begun in {state.fall_backs} boots and never ended")
    return Decision(Action.FALL_BACK, why)

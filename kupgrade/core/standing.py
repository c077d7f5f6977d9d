"""Where an upgrade stands, as sentences: stage, open step, what comes next and why, what is safe, what to do."""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.core.recovery import Action, Decision
from kupgrade.core.stakes import CROSS, HAND_OVER, THAW, images_valid, status_of, volatile
from kupgrade.model.plan import Side
from kupgrade.model.record import Outcome, Stage, State, StepStatus

_STAGES = {
    Stage.PLANNED: "is planned; nothing was touched yet",
    Stage.STAGING: "is being prepared; the workloads run",
    Stage.STAGED: "is prepared; the workloads run",
    Stage.HANDING_OVER: "is handing over; the workloads stand still (blackout)",
    Stage.CROSSED: "has crossed; the new kernel runs, the workloads stand still (blackout)",
    Stage.VERIFYING: "is restoring and verifying in the dark; the workloads stand still (blackout)",
    Stage.COMMITTED: "is committed; the workloads are about to run again",
    Stage.SERVING: "is committed; the workloads run on the new kernel, cleanup is left",
    Stage.UNDOING: "is being rolled back",
    Stage.ROLLED_BACK: "was rolled back",
    Stage.CLEANED: "is committed and cleaned up",
    Stage.ASK_HUMAN: "needs a person: kupgrade keeps its hands off",
}

_NEXT = {
    Action.NOTHING: "nothing",
    Action.RUN: "do",
    Action.VERIFY: "ask the machine whether it took effect:",
    Action.REQUEST_UNDO: "roll back",
    Action.UNDO: "undo",
    Action.CLAIM: "take authority in the new kernel",
    Action.FALL_BACK: "take authority back in the old release and roll back",
    Action.REENTER: "start the old release once more with the workloads' PIDs kept free",
    Action.COMMIT: "commit",
    Action.STAND: "let it run",
    Action.WAIT: "wait for a window",
    Action.COLD: "start the workloads in the ordinary way",
    Action.FINISH: "close the upgrade",
    Action.ASK_HUMAN: "nothing; a person must look",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """The answer of `kupgrade status`."""

    upgrade: str
    stage: str
    old_release: str
    new_release: str
    engine: str
    store: str
    done: int
    steps: int
    open_step: str
    next_action: str
    next_why: str
    stands: str
    safe: str
    todo: str


def stage_of(state: State) -> Stage:
    """The stage that operators see."""
    if state.hands_off and state.outcome is None:
        return Stage.ASK_HUMAN
    if state.outcome is not None:
        return Stage.CLEANED if state.outcome is Outcome.COMMITTED else Stage.ROLLED_BACK
    if state.committed:
        thawed = status_of(state, THAW) is StepStatus.DONE or state.cold
        return Stage.SERVING if thawed else Stage.COMMITTED
    if state.undoing:
        return Stage.UNDOING
    if state.crossed:
        new = [step for step, side in zip(state.steps, state.plan.sides, strict=True) if side is Side.NEW]
        return Stage.VERIFYING if any(step.status is not StepStatus.NEW for step in new) else Stage.CROSSED
    return _before_crossing(state)


def _before_crossing(state: State) -> Stage:
    calm = _calm_steps(state)
    begun = [step.status is not StepStatus.NEW for step in state.steps]
    if any(begun[calm:]):
        return Stage.HANDING_OVER
    if calm and all(step.status is StepStatus.DONE for step in state.steps[:calm]):
        return Stage.STAGED
    return Stage.STAGING if any(begun) else Stage.PLANNED


def _calm_steps(state: State) -> int:
    """How many steps come before the blackout."""
    count = 0
    for phase in state.plan.phases:
        if phase.blackout:
            break
        count += len(phase.steps)
    return count


def standing(state: State, decision: Decision, worker: int | None) -> Standing:
    """`worker` is the PID of the process at work on the upgrade, None when there is none."""
    stage = stage_of(state)
    plan = state.plan
    done = sum(step.status is StepStatus.DONE for step in state.steps)
    return Standing(
        upgrade=str(plan.upgrade),
        stage=stage.value,
        old_release=plan.old_release,
        new_release=plan.new_release,
        engine=plan.engine,
        store=plan.store,
        done=done,
        steps=len(state.steps),
        open_step=_open_step(state),
        next_action=_next(state, decision, worker),
        next_why=decision.why,
        stands=f"The upgrade {plan.upgrade} from {plan.old_release} to {plan.new_release} {_stands(state, stage)}.",
        safe=_safe(state, stage),
        todo=_todo(state, stage, worker, waits=decision.action is Action.WAIT),
    )


def _stands(state: State, stage: Stage) -> str:
    if state.cold and stage is Stage.SERVING:
        return f"is committed; the machine restarted, {state.cold_release} runs the workloads, cleanup is left"
    return _STAGES[stage]


def _open_step(state: State) -> str:
    for index, step in enumerate(state.steps):
        if step.status in (StepStatus.STARTED, StepStatus.UNDO_STARTED):
            verb = "undo of " if step.status is StepStatus.UNDO_STARTED else ""
            spec = state.plan.steps[index]
            if spec.kind in (CROSS, HAND_OVER) and state.crossed and not verb:
                continue  # a crossing is never recorded as done: whoever could do so runs in the other kernel
            return f"{index + 1} of {len(state.steps)}: {verb}{spec.describe}"
    return ""


def _next(state: State, decision: Decision, worker: int | None) -> str:
    if worker is not None and decision.action is Action.VERIFY:
        return f"process {worker} is at work on the open step"
    text = _NEXT[decision.action]
    if decision.step is not None and decision.action in (Action.RUN, Action.VERIFY, Action.UNDO):
        text += f" step {decision.step + 1}, {state.plan.steps[decision.step].describe}"
    return text


def _safe(state: State, stage: Stage) -> str:
    if stage is Stage.ROLLED_BACK:
        return "The old release serves; nothing of the upgrade is left."
    if state.cold:
        return f"{state.cold_release} serves: the workloads were started in the ordinary way. A restart is safe."
    if stage is Stage.ASK_HUMAN and state.committed and status_of(state, THAW) is not StepStatus.DONE:
        return "All evidence is kept. The workloads may stand still; a restart starts them in the ordinary way."
    if state.committed:
        return "The new release serves. A restart is safe; the way back is a new upgrade to the old release."
    if stage is Stage.ASK_HUMAN:
        images = " The checkpoint images are complete: do not delete them." if images_valid(state) else ""
        return "All evidence is kept: journal, images and logs." + images
    if images_valid(state) and volatile(state):
        return "Any failure of the new kernel ends in the old one, which is there; a power cut is an ordinary one."
    if images_valid(state):
        return "A power cut now ends in the old release with the workloads restored from their checkpoint."
    return "The old release serves. A restart ends the upgrade without loss beyond that of any restart."


def _todo(state: State, stage: Stage, worker: int | None, *, waits: bool) -> str:
    if stage is Stage.ASK_HUMAN:
        return (
            f"Find out why ({state.hands_off}); when the workloads are as you want them, close the upgrade with "
            "kupgrade rollback --abandon."
        )
    if state.outcome is not None:
        return "Nothing."
    if waits:
        return "Nothing: it goes on by itself in a window (kupgrade-request.timer). Take it back: kupgrade rollback."
    if worker is not None:
        return "Wait (kupgrade status --watch)" + ("." if state.committed else ", or take it back: kupgrade rollback.")
    way_back = "" if state.committed or state.undoing else "; take it back: kupgrade rollback"
    return f"No process works on it. Go on: systemctl start kupgrade-apply.service{way_back}."


def standing_text(found: Standing) -> str:
    """The sentences, one a line."""
    lines = [found.stands, f"  steps:  {found.done} of {found.steps} done"]
    if found.open_step:
        lines.append(f"  open:   {found.open_step}")
    lines.append(f"  next:   {found.next_action} ({found.next_why})")
    lines += [f"  safe:   {found.safe}", f"  to do:  {found.todo}"]
    return "\n".join(lines)


def would_undo(state: State) -> tuple[str, ...]:
    """What a rollback would undo, in its order."""
    effective = (StepStatus.STARTED, StepStatus.DONE, StepStatus.UNDO_STARTED)
    return tuple(
        f"{spec.kind}: {spec.undo}"
        for spec, step in reversed(list(zip(state.plan.steps, state.steps, strict=True)))
        if step.status in effective
    )

"""Which hooks an upgrade calls, how long each may take, and what that means for the blackout."""

from __future__ import annotations

from kupgrade.model.facts import Facts
from kupgrade.model.hook import BLACKOUT, IN_NEW_KERNEL, Hook, HookPoint
from kupgrade.model.plan import Refusal
from kupgrade.model.policy import Policy

_NO_INVERSE_NEEDED = (HookPoint.POST_RESUME, HookPoint.COMMIT)  # after the commit nothing is undone


def hooks_at(facts: Facts, *points: HookPoint) -> tuple[Hook, ...]:
    """The hooks of these points, in the order in which they are called."""
    return tuple(hook for point in points for hook in facts.hooks if hook.point is point)


def timeout_at(policy: Policy, point: HookPoint) -> float:
    """Seconds that one hook may take."""
    return policy.hooks.blackout_timeout if point in BLACKOUT else policy.hooks.timeout


def blackout_seconds(facts: Facts, policy: Policy) -> float:
    """How much longer the blackout is when every hook in it takes all of its time."""
    return sum(timeout_at(policy, hook.point) for hook in hooks_at(facts, *BLACKOUT))


def hook_refusals(facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
    """Hooks that somebody else could have written, that cannot be called, or that could use up the crossing's time."""
    there = sum(timeout_at(policy, hook.point) for hook in hooks_at(facts, *IN_NEW_KERNEL))
    late = there >= min(policy.deadline, policy.engine.spawn.restore_deadline)
    slow = Refusal(
        "hooks leave time for the restore",
        f"those of the new kernel may take {there:g} s together, as long as it has to commit",
        "Lower [hooks] blackout_timeout, or raise deadline and [engine.spawn] restore_deadline",
    )
    rule = "hooks are root's alone, and can be called"
    bad = (Refusal(rule, f"{fault.path} {fault.why}", fault.remedy) for fault in facts.hook_faults)
    return (*bad, *((slow,) if late else ()))


def hook_warnings(facts: Facts) -> tuple[str, ...]:
    """Hooks whose effect nothing takes back."""
    return tuple(
        f"nothing takes back what the hook {hook.point.value}.d/{hook.name} does: no {hook.name}.undo is beside it"
        for hook in facts.hooks
        if not hook.undo and hook.point not in _NO_INVERSE_NEEDED
    )

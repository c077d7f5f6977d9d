"""Which hooks an upgrade calls, how long each may take, and what that means for the blackout."""

from __future__ import annotations

from kupgrade.model.facts import Facts
from kupgrade.model.hook import BLACKOUT, Hook, HookPoint
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


def hook_refusals(facts: Facts) -> tuple[Refusal, ...]:
    """Hooks that somebody else could have written, or that cannot be called."""
    return tuple(
        Refusal("hooks are root's alone, and can be called", f"{f.path} {f.why}", f.remedy) for f in facts.hook_faults
    )


def hook_warnings(facts: Facts) -> tuple[str, ...]:
    """Hooks whose effect nothing takes back."""
    return tuple(
        f"nothing takes back what the hook {hook.point.value}.d/{hook.name} does: no {hook.name}.undo is beside it"
        for hook in facts.hooks
        if not hook.undo and hook.point not in _NO_INVERSE_NEEDED
    )

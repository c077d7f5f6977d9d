"""Whether restored workloads get their memory before they run or while they do."""

from __future__ import annotations

from kupgrade.model.policy import MemoryMode, Policy
from kupgrade.model.target import Target

LACKS = "memory is copied, not filled in place: {} has no userfaultfd (CONFIG_USERFAULTFD)"
UNKNOWN = (
    "whether {} has userfaultfd is unknown: if it has not, memory is copied in the blackout instead of being filled"
    " in place, and the report says so"
)


def in_place(policy: Policy, target: Target) -> bool:
    """Whether the plan fills memory in place: wished, and not known to be impossible."""
    return policy.engine.memory is MemoryMode.IN_PLACE and target.userfaultfd is not False


def notes(policy: Policy, target: Target) -> tuple[str, ...]:
    """What the plan says about a wish that is not, or perhaps not, fulfilled."""
    if policy.engine.memory is not MemoryMode.IN_PLACE or target.userfaultfd:
        return ()
    return ((LACKS if target.userfaultfd is False else UNKNOWN).format(target.image.release),)

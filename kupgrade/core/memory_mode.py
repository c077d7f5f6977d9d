"""Whether restored workloads get their memory before they run or while they do."""

from __future__ import annotations

from collections.abc import Mapping

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


def known_in_place(policy: Policy, target: Target) -> bool:
    """Whether the plan fills memory in place and the target is known to be able to: a prediction may rest on it."""
    return in_place(policy, target) and target.userfaultfd is True


def told(policy: Policy, target: Target | None) -> Mapping[str, str]:
    """For the preflight: what the policy wishes, and whether memory could be filled in place: yes, no, unknown."""
    known = None if target is None else target.userfaultfd
    return {"policy": policy.engine.memory.value, "in_place": {True: "yes", False: "no", None: "unknown"}[known]}


def notes(policy: Policy, target: Target) -> tuple[str, ...]:
    """What the plan says about a wish that is not, or perhaps not, fulfilled."""
    if policy.engine.memory is not MemoryMode.IN_PLACE or target.userfaultfd:
        return ()
    return ((LACKS if target.userfaultfd is False else UNKNOWN).format(target.image.release),)

"""Kinds of steps that mean something to a decision: what is done again, what a host would notice, what waits."""

from __future__ import annotations

from kupgrade.model.hook import HookPoint
from kupgrade.model.plan import StepSpec

TAKE_DISK = "take-disk"
MARK_GOOD = "mark-good"
TELL_HOOKS = "tell-hooks"

# Kinds whose verify sees less than their do does: a question asked (was the answer yes?), a deed with a second half
# that cannot be seen (a reload, a durable copy, a rest to remove). When one was begun and not recorded as done, it is
# done again instead of asked about; all of them may be done twice.
REPEATED = frozenset(
    {
        "stage-initrd",
        "ready-standby",
        "stop-units",
        "ship-images",
        "gate",
        "ask-standby",
        "arm-watchdog",
        "probe",
        "disarm",
        "unlock-network",
        "release-units",
        "resume-watchdogs",
        "start-units",
        "wipe-images",
        "unstage-initrd",
        TAKE_DISK,
        "start-system",
        "adopt-units",
        "retire-old",
        TELL_HOOKS,
        "answer-for-hooks",
        "return-descriptors",
    }
)

# An upgrade that is held stops before the first of these: from there on the host would notice. A loaded kernel turns
# a restart into a jump, CPUs and memory are missed, services stand still, copied memory grows stale.
HELD_BEFORE = frozenset({"load-kernel", "take-cpus", "take-memory", "stop-units", "stop-services", "pre-dump", "gate"})


def makes_default(spec: StepSpec) -> bool:
    """Whether a step makes the new kernel the boot default, or tells that it is."""
    return spec.kind == MARK_GOOD or (spec.kind == TELL_HOOKS and spec.params.get("point") == HookPoint.COMMIT.value)

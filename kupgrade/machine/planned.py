"""What a plan says of the machine that carries it out: its images, its PIDs, what passes from kernel to kernel."""

from __future__ import annotations

from kupgrade.core.stakes import CROSS, DUMP, STAGE_INITRD
from kupgrade.model.codec import decode
from kupgrade.model.plan import Plan
from kupgrade.model.workload import Store


def image_store(plan: Plan) -> Store | None:
    """Where the plan has its images; None: it dumps nothing, or does not say where."""
    found = next((spec.params.get("store") for spec in plan.steps if spec.kind == DUMP), None)
    return None if found is None else decode(Store, found, "dump.store")


def staged_floor(plan: Plan) -> int:
    """The first PID of the next boot's processes; 0: the plan does not tell."""
    return next((int(spec.params["pid_floor"]) for spec in plan.steps if spec.kind == STAGE_INITRD), 0)


def carried_images(plan: Plan) -> Store | None:
    """The store whose images pass from kernel to kernel in memory, if the plan has one."""
    found = next((spec.params.get("carried") for spec in plan.steps if spec.kind == CROSS), None)
    return None if found is None else decode(Store, found, "cross.carried")


def carried_descriptors(plan: Plan) -> str:
    """The session of stored descriptors that pass from kernel to kernel; empty for none."""
    return next((str(spec.params.get("descriptors", "")) for spec in plan.steps if spec.kind == CROSS), "")

"""What a journal's state says about authority and images: has it passed, and may the images still be restored."""

from __future__ import annotations

from kupgrade.model.record import State, StepStatus
from kupgrade.model.workload import StoreKind

CROSS = "cross"
HAND_OVER = "hand-over"
DUMP = "dump"
STAGE_INITRD = "stage-initrd"
FREEZE = "freeze"
THAW = "thaw"
SOAK = "soak"


def step_index(state: State, kind: str) -> int | None:
    """The position of the first step of `kind`, or None."""
    return next((i for i, spec in enumerate(state.plan.steps) if spec.kind == kind), None)


def status_of(state: State, kind: str) -> StepStatus:
    """The status of the first step of `kind`; NEW when the plan has none."""
    index = step_index(state, kind)
    return StepStatus.NEW if index is None else state.steps[index].status


def crossing_of(state: State) -> int | None:
    """The position of the step that passes authority, or None."""
    return next((i for i, spec in enumerate(state.plan.steps) if spec.kind in (CROSS, HAND_OVER)), None)


def armed(state: State) -> bool:
    """Whether the crossing has been started."""
    index = crossing_of(state)
    return index is not None and state.steps[index].status is not StepStatus.NEW


def volatile(state: State) -> bool:
    """Whether the images are in memory only: a restart of the machine ends them."""
    return state.plan.store == StoreKind.WINDOW.value


def jump_cut_short(state: State) -> bool:
    """Whether a worker may have been killed between the freeze of the file systems and a jump, in this boot.

    Then nothing can be recorded before they are thawed; to thaw file systems that are not frozen changes nothing.
    """
    return armed(state) or state.reentries > 0


def images_valid(state: State) -> bool:
    """Whether no copy of the workloads has run since the dump: its images, if they are complete, may be restored.

    Dead after the intent to thaw: in the new kernel (thaw) as in the old one (undo of freeze), or once the undo of
    the dump has begun in the boot in which it was made, because that undo withdraws the images before the thaw.
    """
    dump = step_index(state, DUMP)
    if dump is None:
        return False
    step = state.steps[dump]
    if status_of(state, THAW) is not StepStatus.NEW or state.committed:
        return False
    if volatile(state) and state.fell_back:
        return False
    freeze = step_index(state, FREEZE)
    if freeze is not None and state.steps[freeze].status in (StepStatus.UNDO_STARTED, StepStatus.UNDONE):
        return False
    if step.status in (StepStatus.DONE, StepStatus.STARTED):
        # STARTED: the originals were frozen and did not run again; whether the dump was finished, the mark tells.
        return True
    undone = step.status in (StepStatus.UNDO_STARTED, StepStatus.UNDONE)
    return undone and step.undo_boot_id != step.boot_id

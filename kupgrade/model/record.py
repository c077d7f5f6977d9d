"""Journal records, and the state that is folded from them. State is never stored."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kupgrade.model.plan import Plan
from kupgrade.model.schedule import Terms


class RecordKind(enum.Enum):
    """Kinds of records. The values live in journals on disk: never renamed, only retired."""

    PLANNED = "planned"  # data: plan; terms, if they are not the ordinary ones
    STARTED = "started"  # step; data: before-image
    DONE = "done"  # step
    FAILED = "failed"  # step; data: error
    UNDO_REQUESTED = "undo-requested"  # data: reason, by
    UNDO_STARTED = "undo-started"  # step
    UNDONE = "undone"  # step
    CROSSED = "crossed"  # the new kernel claims authority; data: release
    FELL_BACK = "fell-back"  # the old release claims authority back; data: release, reason
    REENTERING = "reentering"  # the old release starts once more so that the workloads' PIDs are free
    COMMITTED = "committed"
    COLD = "cold"  # workloads come up by an ordinary start; data: reason
    FINISHED = "finished"  # data: outcome
    HANDS_OFF = "hands-off"  # data: reason
    NOTE = "note"  # figures for the report, e.g. blackout; no effect on the state but that of RELEASED


# Key of a NOTE record: an upgrade that was held goes on; its value says why ("at_once" beside it: see Terms).
RELEASED = "released"


class Outcome(enum.Enum):
    """How an upgrade ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled-back"


class Verdict(enum.Enum):
    """What the machine answers when asked whether a step's effect is there."""

    DONE = "done"
    NOT_DONE = "not-done"
    UNKNOWN = "unknown"


class StepStatus(enum.Enum):
    """Where one step stands."""

    NEW = "new"
    STARTED = "started"
    DONE = "done"
    UNDO_STARTED = "undo-started"
    UNDONE = "undone"


class Stage(enum.Enum):
    """The state machine of an upgrade, as operators see it."""

    PLANNED = "planned"
    STAGING = "staging"
    STAGED = "staged"
    HANDING_OVER = "handing-over"
    CROSSED = "crossed"
    VERIFYING = "verifying"
    COMMITTED = "committed"
    SERVING = "serving"
    UNDOING = "undoing"
    ROLLED_BACK = "rolled-back"
    CLEANED = "cleaned"
    ASK_HUMAN = "ask-human"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal. `time`: seconds since the epoch; `uptime`: CLOCK_BOOTTIME seconds in `boot_id`."""

    seq: int
    kind: RecordKind
    boot_id: str
    epoch: int
    time: float
    uptime: float
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepState:
    """One step's status, the boot it was reached in, the before-image and the number of attempts."""

    status: StepStatus = StepStatus.NEW
    boot_id: str = ""
    before: Mapping[str, Any] | None = None
    attempts: int = 0
    failures: int = 0
    undo_failures: int = 0
    undo_boot_id: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The fold of a journal."""

    plan: Plan
    epoch: int
    boot_id: str  # the boot that holds authority
    steps: tuple[StepState, ...]
    crossed: bool = False
    committed: bool = False
    fell_back: bool = False
    fall_backs: int = 0
    undoing: bool = False
    undo_reason: str = ""
    undo_by: str = ""
    reentries: int = 0
    cold: bool = False
    cold_release: str = ""
    outcome: Outcome | None = None
    hands_off: str = ""
    last_seq: int = 0
    terms: Terms = field(default_factory=Terms)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do (finished)."""
        return self.outcome is not None


@dataclass(frozen=True, slots=True)
class Now:
    """What runs at this moment. `pids_free`: None when it could not be determined.

    `images`: whether images that a kernel had to hand over came to this one; None: there are none of that kind.
    """

    boot_id: str
    release: str
    ticket: str | None
    pids_free: bool | None = None
    images: bool | None = None

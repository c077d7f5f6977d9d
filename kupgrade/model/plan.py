"""A plan is data: phases of steps with a stable kind and parameters; storable, printable, comparable."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kupgrade.model.codec import encode
from kupgrade.model.ids import UpgradeId

PLAN_FORMAT = "kupgrade.plan/1"


class Scope(enum.Enum):
    """How long a step's effect lives."""

    BOOT = "boot"  # dies with the kernel it was done in
    DISK = "disk"  # survives a reboot
    PEER = "peer"  # lives in the other kernel


class Side(enum.Enum):
    """The kernel a step runs in."""

    OLD = "old"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One step as stored: kind, parameters, and what an operator reads."""

    kind: str
    params: Mapping[str, Any]
    scope: Scope
    describe: str
    undo: str  # what undoing does, or why it cannot be undone
    irreversible: bool = False


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps that belong together. `blackout`: the workloads do not run meanwhile."""

    name: str
    side: Side
    steps: tuple[StepSpec, ...]
    blackout: bool = False


EXPERIENCE = "what earlier upgrades took longer"  # terms of a prediction that are no figures of this host's
HOOKS = "hooks"


@dataclass(frozen=True, slots=True)
class BlackoutTerm:
    """One summand of the predicted blackout: seconds and where the figure comes from."""

    name: str
    seconds: float
    basis: str


@dataclass(frozen=True, slots=True)
class Budget:
    """Predicted blackout of one workload against the policy's limit (seconds; None: no limit)."""

    workload: str
    terms: tuple[BlackoutTerm, ...]
    limit: float | None

    @property
    def predicted(self) -> float:
        """Seconds."""
        return sum(term.seconds for term in self.terms)

    @property
    def plain(self) -> float:
        """Seconds without hooks, and without what was learned from earlier upgrades."""
        return sum(term.seconds for term in self.terms if term.name not in (EXPERIENCE, HOOKS))

    @property
    def exceeded(self) -> bool:
        """Whether the prediction is over the limit."""
        return self.limit is not None and self.predicted > self.limit


@dataclass(frozen=True, slots=True)
class Allowance:
    """Seconds of a limited blackout that freeze and dump may take; negative: the rest alone is over the limit."""

    workload: str
    seconds: float
    limit: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no, explained: the rule, the fact it met, what to do."""

    rule: str
    fact: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that will not be kept, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the executor needs; nothing else steers it."""

    upgrade: UpgradeId
    created: float  # seconds since the epoch
    engine: str
    store: str
    boot_id: str
    old_release: str
    new_release: str
    facts_digest: str
    facts: Mapping[str, str]  # name -> value, to name the one that changed
    phases: tuple[Phase, ...]
    budgets: tuple[Budget, ...]
    losses: tuple[Loss, ...]
    warnings: tuple[str, ...]
    fallbacks: tuple[str, ...] = ()
    deadline: float = 120.0  # seconds the new kernel has from the crossing to the commit
    workload_pids: tuple[int, ...] = ()
    workload_cgroups: tuple[str, ...] = ()
    network: str = "early"  # how addresses come up behind the lock: early (by us) or wait (by the network manager)
    network_timeout: float = 30.0
    format: str = PLAN_FORMAT

    @property
    def steps(self) -> tuple[StepSpec, ...]:
        """All steps in order."""
        return tuple(step for phase in self.phases for step in phase.steps)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The side of each step, in the order of `steps`."""
        return tuple(phase.side for phase in self.phases for _ in phase.steps)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form."""
        text = json.dumps(encode(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

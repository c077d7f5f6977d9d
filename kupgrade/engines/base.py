"""What an engine is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kupgrade.model.facts import Facts
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import Phase, Refusal, StepSpec
from kupgrade.model.policy import Policy
from kupgrade.model.target import Target
from kupgrade.model.workload import Store, StoreKind, Workload
from kupgrade.steps.after import SettleReboot, Soak
from kupgrade.steps.base import spec
from kupgrade.steps.bootentry import MarkGood

# Brings up the agent and nothing else; the agent's unit starts the default target when it is done.
CROSSING_TARGET = "kupgrade-crossing.target"


@dataclass(frozen=True, slots=True)
class Order:
    """What phases are built from. `stopped`: services to stop beforehand; `pid_floor`: first PID of the new boot."""

    upgrade: UpgradeId
    facts: Facts
    policy: Policy
    target: Target
    store: Store
    workloads: tuple[Workload, ...]
    stopped: tuple[str, ...]
    pid_floor: int
    staging: str  # directory for staged files


class Engine(Protocol):
    """One way of getting from the old kernel to the new one."""

    name: str

    def refusals(self, facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
        """Why this host cannot use the engine, whatever the target; empty: it can."""
        ...

    def stores(self, policy: Policy) -> tuple[StoreKind, ...]:
        """Image stores in the order of preference."""
        ...

    def phases(self, order: Order) -> tuple[Phase, ...]:
        """The steps."""
        ...


def made_good(order: Order) -> tuple[StepSpec, ...]:
    """The new kernel becomes the boot default, after its soak time; and nobody restarts the host for its sake."""
    release = str(order.target.image.release)
    soak = (spec(Soak(order.policy.soak)),) if order.policy.soak else ()
    return (*soak, spec(MarkGood(release)), spec(SettleReboot(release, order.facts.reboot_packages)))


def with_unit(order: Order) -> tuple[Workload, ...]:
    """The workloads that systemd knows; no boot starts the others, so nothing has to be held."""
    return tuple(workload for workload in order.workloads if workload.unit)

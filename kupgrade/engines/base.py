"""What an engine is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kupgrade.core.hooks import hooks_at, timeout_at
from kupgrade.core.memory_mode import in_place
from kupgrade.core.stops import stop_orders
from kupgrade.model.facts import Facts
from kupgrade.model.hook import IN_NEW_KERNEL, HookPoint
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import Phase, Refusal, StepSpec
from kupgrade.model.policy import Policy
from kupgrade.model.target import Target
from kupgrade.model.workload import Store, StoreKind, Workload
from kupgrade.steps.after import SettleReboot, Soak
from kupgrade.steps.base import spec
from kupgrade.steps.bootentry import MarkGood
from kupgrade.steps.filling import FillMemory
from kupgrade.steps.hook import AnswerForHooks, CallHooks, TellHooks
from kupgrade.steps.stopping import StartUnits, StopUnits
from kupgrade.steps.watchdogs import PauseWatchdogs, ResumeWatchdogs

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


def filled(order: Order) -> tuple[StepSpec, ...]:
    """The wait for memory in place: images are needed, and nothing is good, before it ends; empty for copied memory."""
    return (spec(FillMemory(order.workloads)),) if in_place(order.policy, order.target) else ()


def paused_watchdogs(order: Order) -> tuple[StepSpec, ...]:
    """Before the units are held, for undone after it; empty when none has a watchdog."""
    found = _watched(order)
    return (spec(PauseWatchdogs(found)),) if found else ()


def resumed_watchdogs(order: Order) -> tuple[StepSpec, ...]:
    """The same after the commit."""
    found = _watched(order)
    return (spec(ResumeWatchdogs(found)),) if found else ()


def _watched(order: Order) -> tuple[Workload, ...]:
    return tuple(each for each in with_unit(order) if each.watchdog)


def stopped_units(order: Order) -> tuple[StepSpec, ...]:
    """Units of fate stop: stopped, and started by nobody until `started_units`; empty when there are none."""
    found = stop_orders(order.policy)
    return (spec(StopUnits(found, str(order.upgrade))),) if found else ()


def started_units(order: Order) -> tuple[StepSpec, ...]:
    """The same are let go; empty when there are none."""
    found = stop_orders(order.policy)
    return (spec(StartUnits(found)),) if found else ()


def made_good(order: Order) -> tuple[StepSpec, ...]:
    """The new kernel becomes the boot default, after its soak time; and nobody restarts the host for its sake.

    Hooks are told when both is so: one of them may look for wishes for a restart, or take its time.
    """
    release = str(order.target.image.release)
    return (
        *((spec(Soak(order.policy.soak)),) if order.policy.soak else ()),
        spec(MarkGood(release)),
        spec(SettleReboot(release, order.facts.reboot_packages)),
        *hooks_after_commit(order, HookPoint.COMMIT),
    )


def with_unit(order: Order) -> tuple[Workload, ...]:
    """The workloads that systemd knows; no boot starts the others, so nothing has to be held."""
    return tuple(workload for workload in order.workloads if workload.unit)


def hooks_before_commit(order: Order, point: HookPoint) -> tuple[StepSpec, ...]:
    """The call of the hooks of `point`; empty when there are none."""
    found = hooks_at(order.facts, point)
    return (spec(CallHooks(point, found, timeout_at(order.policy, point))),) if found else ()


def hooks_after_commit(order: Order, point: HookPoint) -> tuple[StepSpec, ...]:
    """The same, after the commit."""
    found = hooks_at(order.facts, point)
    return (spec(TellHooks(point, found, timeout_at(order.policy, point))),) if found else ()


def answer_for_hooks(order: Order) -> tuple[StepSpec, ...]:
    """The undo, in the old kernel, of hooks that one beside it calls; empty when there are none."""
    found = hooks_at(order.facts, *IN_NEW_KERNEL)
    return (spec(AnswerForHooks(found, timeout_at(order.policy, HookPoint.PRE_RESTORE))),) if found else ()

"""Units of fate stop on the modelled host: one that every boot would start, one that only a person started."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.model.facts import StopFacts, WorkloadFacts
from kupgrade.model.policy import WorkloadPolicy
from kupgrade.model.workload import Fate, StopOrder

ENABLED, BY_HAND = "cron.service", "report.service"  # the second was started by hand, no boot starts it
AGENT, BATCH = "agent.service", "batch.service"  # so here, but these two are of fate stop
SERVICES = (ENABLED, AGENT, BY_HAND, BATCH)
STOPPED = frozenset((AGENT, BATCH))
POLICIES = tuple(WorkloadPolicy(unit.split(".")[0], unit=unit, fate=Fate.STOP) for unit in (AGENT, BATCH))
FACTS = tuple(WorkloadFacts(each.name, each.unit, None, stop=StopFacts(runs=True)) for each in POLICIES)


def started_by_boot(services: Collection[str], down: Collection[str]) -> set[str]:
    """What runs after a boot, of the services of a host, when these are kept down."""
    return {ENABLED, AGENT} & set(services) - set(down)


@dataclass
class Stopping:
    """The port on a modelled machine, or on one of two kernels."""

    m: Any

    def up(self, units: Sequence[str]) -> tuple[str, ...]:
        return tuple(unit for unit in units if unit in self.m.active)

    def kept_down(self) -> tuple[str, ...]:
        return tuple(sorted(self.m.down))

    def keep_down(self, units: Sequence[str], upgrade: str) -> None:
        for unit in units:
            self.m.act(f"keep {unit} down")
            self.m.down.add(unit)

    def stop(self, orders: Sequence[StopOrder], units: Sequence[str]) -> None:
        for unit in units:
            self.m.act(f"stop {unit}")
            if self.m.behaviour.stop_hangs and unit == BATCH:
                raise KupgradeError(f"{unit} did not stop in time")
            self.m.active.discard(unit)
            if unit not in self.m.down:
                self.m.violate(f"{unit} was stopped, and a timer could start it again")

    def let_go(self, units: Sequence[str]) -> tuple[str, ...]:
        if forgotten := sorted(self.m.down - set(units)):
            self.m.violate(f"{forgotten} were stopped and are let go without a start")
        for unit in units:
            self.m.act(f"start {unit}")
            self.m.active.add(unit)
            self.m.started_in = self.m.boot_id
        self.m.act("keep nobody down")
        self.m.down.clear()
        return ()


def check_quiet(machine: Any) -> None:
    """By whoever dumps or restores: none of them runs then, in any boot, if the upgrade came that far in the first."""
    if loud := sorted(STOPPED & machine.active):
        machine.violate(f"{loud} run while the workloads stand still")


def judge_stopped(machine: Any) -> list[str]:
    """At the end of an upgrade nobody is kept down, and whoever ran and was stopped for it runs again."""
    problems = [f"left behind: {sorted(machine.down)} are kept down"] if machine.down else []
    # A restart since then starts what it always starts.
    wanted = STOPPED if machine.started_in == machine.boot_id else {AGENT}
    if missing := sorted(wanted - machine.active):
        problems.append(f"{missing} were stopped for the upgrade and do not run at its end")
    return problems

"""Units that the policy wants stopped over the crossing (fate stop): which, why one cannot be, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator

from kupgrade.model.facts import Facts, StopFacts
from kupgrade.model.plan import Loss, Refusal
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.workload import Fate, StopOrder


def stop_orders(policy: Policy) -> tuple[StopOrder, ...]:
    """All of them, whether they run now or not: one may be started until the upgrade comes to it."""
    return tuple(StopOrder(each.unit, each.stop_timeout) for each in policy.workloads if each.fate is Fate.STOP)


def _entries(facts: Facts, policy: Policy) -> Iterator[tuple[WorkloadPolicy, StopFacts | None]]:
    for entry, seen in zip(policy.workloads, facts.workloads, strict=True):
        if entry.fate is Fate.STOP:
            yield entry, seen.stop


def stop_refusals(facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
    """Why one of them cannot be stopped and started again, and with it no upgrade be made as the policy wants it."""
    kept = {each.unit for each in policy.workloads if each.fate is Fate.KEEP and each.unit}
    stored = {each.unit for each in policy.preserve}
    found = []
    for entry, seen in _entries(facts, policy):
        rule = f"{entry.name} can be stopped"
        if seen is None:
            why = facts.unknown.get(f"workload {entry.name}", "it could not be examined")
            found.append(Refusal(rule, f"{entry.unit}: {why}", "Look at systemctl status of it"))
        elif seen.why_not:
            found.append(Refusal(rule, f"{entry.unit}: {seen.why_not}", "Give it fate = restart, or take it out"))
        if entry.unit in kept:
            found.append(Refusal(rule, f"{entry.unit} is to be kept, too", "Name it once in the policy"))
        elif with_it := sorted(kept.intersection(seen.along if seen else ())):
            fact = f"{', '.join(with_it)}, which is to be kept, would stop with {entry.unit}"
            found.append(Refusal(rule, fact, "Keep it, too, or loosen Requires=, BindsTo= or PartOf= of the kept one"))
        if unreturned := sorted(stored.intersection((entry.unit, *(seen.along if seen else ())))):
            fact = f"the descriptors of {', '.join(unreturned)} are to be returned, for which it must be started before"
            found.append(Refusal(rule, fact, "Give it fate = restart, or take it out of [[preserve]]"))
        if policy.keeps_service(entry.unit):
            fact = f"keep_services says that {entry.unit} must not be stopped beforehand"
            found.append(Refusal(rule, fact, "Take it out of one of the two"))
    return tuple(found)


def stop_losses(facts: Facts, policy: Policy) -> tuple[Loss, ...]:
    """What of those that run does not go on; started again are the units, not what they were at."""
    found = []
    for entry, seen in _entries(facts, policy):
        if seen is not None and seen.runs:
            found.append(Loss(entry.unit, "stopped cleanly before all else, started again when the kept ones serve"))
            found += [Loss(unit, f"stopped and started again with {entry.unit}") for unit in seen.along]
    return tuple(found)

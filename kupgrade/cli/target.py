"""What to upgrade to: the options that `plan` and `apply` share, and the plan made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kupgrade.core.errata import errata_refusals
from kupgrade.core.explain import budget_text, changed_facts
from kupgrade.errors import OverBudgetError, RefusedError

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.facts import Facts
    from kupgrade.model.plan import Plan
    from kupgrade.model.policy import Policy

F = TypeVar("F", bound=Callable[..., Any])
AUTO = "auto"
ENGINES = ("kexec", "spawn")


@dataclass(frozen=True, slots=True)
class Target:
    """The operator's choices; None and auto leave them to the policy."""

    kernel: str | None
    engine: str
    store: str
    retry_failed: bool

    @property
    def chosen(self) -> bool:
        """Whether anything of the plan's content was chosen."""
        return self.kernel is not None or (self.engine, self.store) != (AUTO, AUTO)


def target_options(function: F) -> F:
    """--kernel, --engine, --store, --retry-failed."""
    for option in (
        click.option("--retry-failed", is_flag=True, help="Allow a release that was rolled back before."),
        click.option(
            "--store", type=click.Choice([AUTO, "luo", "pmem", "disk"]), default=AUTO, help="Where images wait."
        ),
        click.option("--engine", type=click.Choice([AUTO, *ENGINES]), default=AUTO, help="How the new kernel starts."),
        click.option("--kernel", metavar="RELEASE|PATH", help="The new kernel; the newest installed one by default."),
    ):
        function = option(function)
    return function


def new_plan(composed: Composition, target: Target) -> Plan:
    """A plan from the facts of now; raises PlanRefused, and NotNowError while an instance is there."""
    composed.state.refuse_instances()
    policy = composed.policy
    facts = composed.probe(composed.root, policy)
    return composed.make_plan(
        policy,
        facts,
        kernel=target.kernel,
        engine=target.engine,
        store=target.store,
        retry_failed=target.retry_failed,
        root=composed.root,
        rejected={} if target.retry_failed else composed.state.rejected_releases(),
    )


def check_stored(composed: Composition, plan: Plan, retry_failed: bool) -> None:
    """Refuse a stored plan that the host, the policy or the past no longer allows, naming what changed."""
    policy = composed.policy
    facts = composed.probe(composed.root, policy)
    _check_fresh(plan, facts)
    for each in errata_refusals(facts, policy, None, plan.engine):
        raise RefusedError(f"{each.rule}: no", each.fact, each.remedy)
    rejected = {} if retry_failed else composed.state.rejected_releases()
    if plan.new_release in rejected:
        raise RefusedError(
            f"{plan.new_release} was rolled back before",
            rejected[plan.new_release],
            "Choose another release, or insist with --retry-failed",
        )
    if not policy.kernels.permits(plan.new_release):
        raise RefusedError(
            f"{plan.new_release} is not allowed", "[kernels] of the policy excludes it", "See kupgrade policy check"
        )
    _check_limits(plan, policy)


def _check_limits(plan: Plan, policy: Policy) -> None:
    """The limits of now, not those of the day when the plan was made."""
    limits = {workload.name: policy.limit(workload) for workload in policy.workloads}
    for budget in plan.budgets:
        limit = limits.get(budget.workload)
        if limit is not None and budget.predicted > limit:
            raise OverBudgetError(
                "The predicted blackout is over its limit",
                budget_text(replace(budget, limit=limit)),
                "Raise max_blackout in the policy, or choose a faster store",
            )


def _check_fresh(plan: Plan, facts: Facts) -> None:
    again = "Make a new plan: kupgrade plan"
    if plan.boot_id != facts.boot_id:
        raise RefusedError("The plan was made in another boot", f"boot {plan.boot_id}, now {facts.boot_id}", again)
    if plan.old_release != facts.release:
        raise RefusedError("The plan was made on another kernel", f"{plan.old_release}, now {facts.release}", again)
    if plan.facts_digest != facts.digest:
        changes = changed_facts(plan.facts, facts.values)
        raise RefusedError(
            "The host has changed since the plan was made", "; ".join(changes) or "its digest differs", again
        )

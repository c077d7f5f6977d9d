"""Plans and refusals as text for people. The only place that writes prose about them; JSON twins are `encode`d data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kupgrade.core.obstacles import obstacles
from kupgrade.model.codec import encode
from kupgrade.model.facts import Facts, StopFacts, WorkloadFacts
from kupgrade.model.plan import Budget, Plan, Refusal, Side, StepSpec

_KERNEL = {Side.OLD: "old kernel", Side.NEW: "new kernel"}


def plan_text(plan: Plan) -> str:
    """The whole plan: steps with their undo, blackout, losses, warnings, fallbacks."""
    sections = [
        _heading(plan),
        "\n".join(("What will happen", *_phases(plan))),
        "\n".join(("Blackout", *_budgets(plan))),
        _listing("Not kept", [f"{loss.what}: {loss.why}" for loss in plan.losses]),
        _listing("Warnings", plan.warnings),
        _listing("Fallbacks", plan.fallbacks),
    ]
    return "\n\n".join(section for section in sections if section)


def _heading(plan: Plan) -> str:
    return (
        f"Plan {plan.upgrade}: from {plan.old_release} to {plan.new_release}\n"
        f"  engine {plan.engine}, images on {plan.store}; the new kernel has {span(plan.deadline)} to commit,\n"
        f"  else the machine falls back to {plan.old_release}"
    )


def _phases(plan: Plan) -> Iterator[str]:
    number = 0
    for phase in plan.phases:
        mark = " [blackout]" if phase.blackout else ""
        yield f"  {phase.name} ({_KERNEL[phase.side]}){mark}"
        for step in phase.steps:
            number += 1
            yield f"  {number:3}. {step.describe}"
            yield f"       undo: {_undo(step)}"


def _undo(step: StepSpec) -> str:
    return f"none, it cannot be undone ({step.undo})" if step.irreversible else step.undo


def _budgets(plan: Plan) -> Iterator[str]:
    if not plan.budgets:
        yield "  no workload stands still"
    for budget in plan.budgets:
        yield f"  {budget_text(budget)}"
        for term in budget.terms:
            yield f"    {term.name:<24} {span(term.seconds):>9}  {term.basis}"


def budget_text(budget: Budget) -> str:
    """One workload's prediction against its limit."""
    predicted = f"{budget.workload}: predicted {span(budget.predicted)}"
    if budget.limit is None:
        return f"{predicted}, no limit set"
    verdict = "OVER the limit of" if budget.exceeded else "within the limit of"
    return f"{predicted}, {verdict} {span(budget.limit)}"


def over_budget(plan: Plan) -> tuple[Budget, ...]:
    """The budgets that the prediction exceeds."""
    return tuple(budget for budget in plan.budgets if budget.exceeded)


def _listing(title: str, lines: Sequence[str]) -> str:
    return "\n".join((title, *(f"  - {line}" for line in lines))) if lines else ""


def span(seconds: float) -> str:
    """Seconds as people write them: 340 ms, 2.5 s, 2 min 5 s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def refusals_text(refusals: Sequence[Refusal]) -> str:
    """Each no with the fact that caused it and the remedy."""
    return "\n".join(
        f"  - {refusal.fact}\n    rule: {refusal.rule}\n    remedy: {refusal.remedy}" for refusal in refusals
    )


def changed_facts(planned: Mapping[str, str], found: Mapping[str, str]) -> tuple[str, ...]:
    """What differs between the facts of a stored plan and those of now, in words."""
    return tuple(
        f"{name}: was {planned.get(name, 'absent')!r}, is {found.get(name, 'absent')!r}"
        for name in sorted({*planned, *found})
        if planned.get(name) != found.get(name)
    )


# The release that was looked at ("": none), by store why images cannot go to it, and what memory_mode.told() says.
StoreChoice = tuple[str, Mapping[str, Sequence[Refusal]], Mapping[str, str]]


def preflight_text(facts: Facts, capabilities: Mapping[str, Sequence[Refusal]], stores: StoreChoice) -> str:
    """What was found: engines and stores that can and cannot, workloads and their obstacles, what nobody could tell."""
    lines = [f"Running {facts.release} ({facts.architecture}), boot {facts.boot_id}", "", "Engines"]
    lines += _able(capabilities)
    target, by_store, memory = stores
    lines += ["", f"Image stores of the kexec engine, {f'to {target}' if target else 'as far as this host goes'}"]
    lines += _able(by_store)
    lines += [
        "",
        "Memory of restored workloads",
        f"  in place: {memory['in_place']}; the policy says {memory['policy']}",
    ]
    lines += ["", "Workloads"]
    for workload in facts.workloads:
        lines += _workload(workload)
    if not facts.workloads:
        lines.append("  none named by the policy: nothing would be kept")
    unknown = [f"{name}: {reason}" for name, reason in sorted(facts.unknown.items())]
    if unknown:
        lines += ["", _listing("Unknown", unknown)]
    return "\n".join(lines)


def _able(refused: Mapping[str, Sequence[Refusal]]) -> Iterator[str]:
    for name, refusals in refused.items():
        yield f"  {name}: {'refused' if refusals else 'can'}"
        if refusals:
            yield refusals_text(refusals).replace("\n", "\n  ").replace("  - ", "    - ", 1)


def _workload(facts: WorkloadFacts) -> Iterator[str]:
    if facts.stop is not None:
        yield f"  {facts.name}: {_stopped(facts.unit, facts.stop)}"
        return
    if facts.workload is None:
        yield f"  {facts.name}: does not run ({facts.absent or 'no process found'})"
        return
    size = (facts.anonymous_bytes + facts.shared_bytes) / (1 << 20)
    yield (
        f"  {facts.name}: {len(facts.workload.pids)} processes, {size:.0f} MiB of memory, "
        f"{facts.connections} connections"
    )
    for obstacle in obstacles(facts):
        kind = "cannot be kept" if obstacle.fatal else "note"
        yield f"    - {kind}: {obstacle.comm} ({obstacle.pid}) {obstacle.what}"


def _stopped(unit: str, facts: StopFacts) -> str:
    if facts.why_not:
        return f"cannot be stopped and started again: {facts.why_not}"
    along = f", and with it {', '.join(facts.along)}" if facts.along else ""
    runs = "runs" if facts.runs else "does not run now"
    return f"{unit} {runs}; it is stopped before an upgrade, and started again if it ran{along}"


def preflight_json(facts: Facts, capabilities: Mapping[str, Sequence[Refusal]], stores: StoreChoice) -> dict[str, Any]:
    """The JSON twin of `preflight_text`."""
    workloads = [
        {
            "name": workload.name,
            "running": workload.workload is not None,
            "absent": workload.absent,
            "pids": encode(workload.workload.pids) if workload.workload else [],
            "anonymous_bytes": workload.anonymous_bytes,
            "shared_bytes": workload.shared_bytes,
            "connections": workload.connections,
            "obstacles": encode(obstacles(workload)),
            "stop": encode(workload.stop),
        }
        for workload in facts.workloads
    ]
    return {
        "format": "kupgrade.preflight/1",
        "release": facts.release,
        "boot_id": facts.boot_id,
        "architecture": facts.architecture,
        "engines": {name: encode(tuple(refusals)) for name, refusals in capabilities.items()},
        "target": stores[0],
        "stores": {name: encode(tuple(refusals)) for name, refusals in stores[1].items()},
        "memory": dict(stores[2]),
        "workloads": workloads,
        "unknown": encode(facts.unknown),
    }

"""What a rehearsal of this host says: pure, from what was predicted here and what was seen there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kupgrade.core.chronicle import BLACKOUT
from kupgrade.core.explain import over_budget, span
from kupgrade.model.live_images import LiveSeen
from kupgrade.model.plan import Plan
from kupgrade.model.workload import Fate
from kupgrade.rehearsal import judge
from kupgrade.rehearsal.own_inside import Answer, UnitSeen
from kupgrade.rehearsal.own_root import LeftOut

FORMAT = "kupgrade.this-host/1"
_MOST = 12  # lines of one list for people


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload of the policy. `why`: it has no part in the rehearsal. Bytes are of its memory here."""

    name: str
    unit: str
    why: str = ""
    memory_here: int = 0
    before: UnitSeen | None = None
    after: UnitSeen | None = None
    fate: Fate = Fate.KEEP


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything the forecast is made of. `slower`: how many times a process there takes what it takes here."""

    plan: Plan  # of this host
    store: str  # in the guest
    answer: Answer
    journal: tuple[Mapping[str, Any], ...]
    running_release: str
    workloads: tuple[Workload, ...]
    slower: float
    machine: Mapping[str, Any]
    differs: Sequence[str]
    left_out: Sequence[LeftOut]
    changed: Sequence[str] = ()
    failed_units: tuple[str, ...] = field(default=())
    live: tuple[LiveSeen, ...] | None = None  # None: it was not asked for


def outcome(answer: Answer, journal: Sequence[Mapping[str, Any]]) -> str:
    """committed, rolled-back, refused, hands-off, or failed: also when it did not end."""
    if answer.outcome != "started":
        return answer.outcome if answer.outcome in ("refused", "nothing-to-do") else "failed"
    ended = [str(record["data"].get("outcome")) for record in journal if record["kind"] == "finished"]
    if ended:
        return ended[-1]
    return "hands-off" if any(record["kind"] == "hands-off" for record in journal) else "failed"


def reason(answer: Answer, journal: Sequence[Mapping[str, Any]]) -> str:
    """Why it did not commit; empty when it did."""
    if answer.outcome != "started":
        return answer.reason
    for record in journal:
        if record["kind"] in ("undo-requested", "fell-back", "hands-off"):
            return str(record["data"].get("reason", ""))
    return "" if any(record["kind"] == "finished" for record in journal) else "it did not end in time"


def blackouts(journal: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each workload, as the guest's own journal measured them."""
    found: dict[str, float] = {}
    for record in journal:
        if record["kind"] == "note" and BLACKOUT in record["data"]:
            found.update({str(name): float(value) for name, value in record["data"][BLACKOUT].items()})
    return found


def findings(seen: Observed, ended: str) -> list[str]:
    """What is wrong with the workloads afterwards; empty when nothing was lost."""
    found = []
    wanted = {"committed": seen.plan.new_release, "rolled-back": seen.plan.old_release}.get(ended)
    if wanted is not None and seen.running_release != wanted:
        found.append(f"{seen.running_release} runs there, expected {wanted}")
    for each in seen.workloads:
        if each.why or each.before is None or each.fate not in (Fate.KEEP, Fate.RESTART):
            continue
        if not each.before.active:
            found.append(f"{each.name}: its unit did not start there: {each.before.state}")
            continue
        if each.before.healthy is False:
            found.append(f"{each.name}: its probe was not answered before the upgrade")
        after = each.after
        if after is None:
            found.append(f"{each.name}: it could not be asked afterwards")
            continue
        if not after.active:
            found.append(f"{each.name}: its unit is {after.state} afterwards")
        if after.healthy is False:
            found.append(f"{each.name}: its probe is not answered afterwards")
        if each.fate is not Fate.KEEP:
            continue
        if not _kept(each):
            found.append(f"{each.name}: PIDs {_list(each.before.pids)} became {_list(after.pids)}")
        if after.restarts != each.before.restarts:
            found.append(f"{each.name}: systemd restarted it {after.restarts - each.before.restarts} times")
    return found


def live_findings(live: Sequence[LiveSeen]) -> list[str]:
    """What is wrong with what was dumped here and restored there."""
    return [
        f"{each.name}, as it runs here: {'NOT restored' if each.restored is False else 'not found out'}: {each.error}"
        for each in live
        if each.restored is not True
    ]


def overall(ended: str, wrong: Sequence[str], live: Sequence[LiveSeen]) -> str:
    """Of the whole rehearsal. What runs here and cannot be restored takes an upgrade back; what is not known fails."""
    if wrong:
        return "failed"
    if ended != "committed":
        return ended
    if any(each.restored is None for each in live):
        return "failed"
    return ended if all(each.restored for each in live) else "rolled-back"


def _live(each: LiveSeen) -> Any:
    return {
        "name": each.name,
        "restored": each.restored,
        "pause_seconds": max(each.pauses, default=None),
        "pauses": list(each.pauses),
        "restore_seconds": each.restore_seconds,
        "error": each.error,
        "differs": list(each.differs),
    }


def _list(pids: Sequence[int]) -> str:
    return " ".join(map(str, pids)) or "none"


def _kept(each: Workload) -> bool | None:
    """Whether it is the same process; those that come and go with its work do not count. None: it need not be."""
    if each.fate is not Fate.KEEP or each.before is None or each.after is None:
        return None
    return each.before.main_pid == each.after.main_pid and each.before.main_pid in each.after.pids


def _workload(each: Workload, seen: Observed, stood: float | None) -> Any:
    if each.why:
        return {"name": each.name, "unit": each.unit, "left_out": each.why}
    budget = next((budget for budget in seen.plan.budgets if budget.workload == each.name), None)
    before, after = each.before, each.after
    return {
        "name": each.name,
        "unit": each.unit,
        "fate": each.fate.value,
        "predicted_seconds": None if budget is None else round(budget.predicted, 3),
        "limit_seconds": None if budget is None else budget.limit,
        "blackout_seconds": stood,
        "scaled_seconds": None if stood is None else round(stood / seen.slower, 3),
        "pids_before": list(before.pids) if before else [],
        "pids_after": list(after.pids) if after else [],
        "kept": _kept(each),
        "active": after.active if after else None,
        "healthy": after.healthy if after else None,
        "memory_here_bytes": each.memory_here,
    }


def forecast(seen: Observed) -> dict[str, Any]:
    """The result object. An upgrade that ended well but lost something counts as failed."""
    ended = outcome(seen.answer, seen.journal)
    wrong = findings(seen, ended) if ended in ("committed", "rolled-back") else []
    if ended == "failed":
        wrong.append(reason(seen.answer, seen.journal) or "the upgrade did not end")
    stood = blackouts(seen.journal)
    live = seen.live or ()
    return {
        "format": FORMAT,
        "outcome": overall(ended, wrong, live),
        "upgrade_outcome": ended,
        "reason": reason(seen.answer, seen.journal),
        "findings": [*wrong, *live_findings(live)],
        "refusals": list(seen.answer.refusals),
        "old_release": seen.plan.old_release,
        "new_release": seen.plan.new_release,
        "running_release": seen.running_release,
        "predicted": {
            "outcome": "over-budget" if over_budget(seen.plan) else "committed",
            "store": seen.plan.store,
            "warnings": list(seen.plan.warnings),
            "losses": [f"{loss.what}: {loss.why}" for loss in seen.plan.losses],
        },
        "store": seen.store,
        "slower": round(seen.slower, 2),
        "workloads": [_workload(each, seen, stood.get(each.name)) for each in seen.workloads],
        **({} if seen.live is None else {"live": [_live(each) for each in seen.live]}),
        "warnings": list(seen.answer.plan.get("warnings", ())),
        "machine": dict(seen.machine),
        "differs": list(seen.differs),
        "left_out": [{"path": each.path, "why": each.why} for each in seen.left_out],
        "changed_while_copied": list(seen.changed),
        "failed_units": list(seen.failed_units),
        "phases": judge.phases(seen.journal),
        "steps": judge.steps(seen.journal),
    }


def refused(plan_error: Mapping[str, Any]) -> dict[str, Any]:
    """The result where `kupgrade plan` says no on this host: there is nothing to rehearse."""
    return {
        "format": FORMAT,
        "outcome": "refused",
        "upgrade_outcome": "refused",
        "reason": str(plan_error.get("what", "")),
        "findings": [],
        "refusals": list(plan_error.get("refusals", ())),
        "predicted": {"outcome": "refused"},
        "workloads": [],
    }


def text(told: Mapping[str, Any]) -> str:
    """For people."""
    lines = [_heading(told)]
    for each in told["refusals"]:
        lines += [f"  - {each['fact']}", f"    rule: {each['rule']}", f"    remedy: {each['remedy']}"]
    lines += [_workload_text(each) for each in told["workloads"]]
    lines += [line for each in told.get("live", ()) for line in _live_text(each)]
    lines += [f"finding: {each}" for each in told["findings"]]
    if "differs" not in told:
        return "\n".join(lines)
    lines.append("timeline there:")
    lines += [f"  {phase['ms'] / 1000:9.2f} s  {phase['name']}" for phase in told["phases"]]
    for title, entries in (
        ("predicted here, not kept", told["predicted"]["losses"]),
        ("not as on this host", told["differs"]),
        ("not there", [f"{each['path']}: {each['why']}" for each in told["left_out"]]),
    ):
        if entries:
            lines += [f"{title}:", *(f"  - {entry}" for entry in entries[:_MOST])]
            lines += [f"  and {len(entries) - _MOST} more, see --json"] if len(entries) > _MOST else []
    if told["changed_while_copied"]:
        some = ", ".join(told["changed_while_copied"][:5])
        lines.append(f"{len(told['changed_while_copied'])} files changed while they were copied: {some}")
    return "\n".join(lines)


def _heading(told: Mapping[str, Any]) -> str:
    why = f" ({told['reason']})" if told["reason"] else ""
    if "old_release" not in told:
        return f"{told['outcome']}: `kupgrade plan` says no on this host{why}"
    return (
        f"{told['outcome']}: {told['old_release']} -> {told['new_release']} on a copy of this host,"
        f" {told['running_release']} runs there{why}; predicted here: {told['predicted']['outcome']}"
    )


def _workload_text(each: Mapping[str, Any]) -> str:
    if "left_out" in each:
        return f"{each['name']}: not rehearsed, {each['left_out']}"
    predicted, stood = each["predicted_seconds"], each["blackout_seconds"]
    parts = [each["fate"] if predicted is None else f"predicted here {span(predicted)}"]
    if stood is not None:
        parts.append(
            f"stood still {span(stood)} there ({span(each['scaled_seconds'])} by this host's processors alone)"
        )
        if each["limit_seconds"] is not None and each["scaled_seconds"] > each["limit_seconds"]:
            parts.append(f"OVER its limit of {span(each['limit_seconds'])}")
    if each["kept"] is not None:
        parts.append(f"PIDs {'kept' if each['kept'] else 'CHANGED'}")
    if each["healthy"] is not None:
        parts.append("its probe is answered" if each["healthy"] else "its probe is NOT answered")
    return f"{each['name']}: " + ", ".join(parts)


def _live_text(each: Mapping[str, Any]) -> list[str]:
    """Of what really runs here, for people."""
    words = {True: "was restored there", False: "was NOT restored there", None: "was not tried there"}
    parts = [f"as it runs here it {words[each['restored']]}"]
    if each["restore_seconds"] is not None:
        parts.append(f"in {span(each['restore_seconds'])}")
    if each["pauses"]:
        total = span(sum(each["pauses"]))
        parts.append(f"for its dump it stood still here for {span(each['pauses'][-1])} ({total} with all rounds)")
    lines = [f"{each['name']}: " + ", ".join(parts) + (f": {each['error']}" if each["error"] else "")]
    lines += [f"  - {entry}" for entry in each["differs"][:_MOST]]
    more = len(each["differs"]) - _MOST
    return [*lines, f"  and {more} more, see --json"] if more > 0 else lines

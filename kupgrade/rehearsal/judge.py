"""The verdict on a rehearsal: pure, from what was seen before, during and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kupgrade.core.chronicle import OPERATOR
from kupgrade.rehearsal import resources
from kupgrade.rehearsal.client import Recording

FORMAT = "kupgrade.rehearsal/1"
_BACK = "rolling back"  # undo-started and undone
_TURNS = ("crossed", "fell-back", "undo-requested", "committed", "cold", "hands-off", "finished")


@dataclass(frozen=True, slots=True)
class WorkloadSeen:
    """The demonstration workload at one moment, as asked inside the virtual host."""

    pids: tuple[int, ...]
    main_pid: int
    active: bool
    restarts: int
    memory: str  # the workload's own answer to `check`
    lines: tuple[str, ...]  # of its append-only file


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the judge is given. `journal`: decoded records of the upgrade, in order."""

    engine: str
    store: str
    old_release: str
    new_release: str
    running_release: str
    boot_ids: tuple[str, ...]
    before: WorkloadSeen
    after: WorkloadSeen | None
    client: Recording
    journal: tuple[Mapping[str, Any], ...]
    status: Mapping[str, Any] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    fault: str = ""
    fatal: bool = False  # no upgrade commits that this fault strikes
    refused: str = ""
    broke: str = ""  # what `kupgrade apply` said when it neither began nor refused
    rollback: str = ""  # the step at which an operator was to take it back
    cold_expected: bool = False  # the fault was an ordinary power cut: started anew is as good as it gets
    resources_before: Mapping[str, Any] | None = None  # counted where one kernel starts beside the other
    resources_after: Mapping[str, Any] | None = None

    @property
    def beside(self) -> bool:
        """Whether the new kernel starts beside the old one, which then goes on for as long as it is needed."""
        return self.engine == "spawn"


def file_intact(lines: Sequence[str], known: int = 0) -> bool:
    """Lines `N PID COUNTER` are numbered from 1 without a gap, and the counter never falls.

    Of the first `known` lines, which were there before, only the last life of the workload is looked at: an earlier
    power cut may have ended another.
    """
    begun = max((at for at, line in enumerate(lines[:known]) if line.split()[:1] == ["1"]), default=0)
    last = -1
    for number, line in enumerate(lines[begun:], 1):
        words = line.split()
        if len(words) != 3 or words[0] != str(number) or not words[2].isdigit() or int(words[2]) < last:
            return False
        last = int(words[2])
    return bool(lines)


def phases(journal: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of each phase and of rolling back, by the wall clock of its first and last record."""
    plan = next((r["data"]["plan"] for r in journal if r["kind"] == "planned"), None)
    if plan is None:
        return []
    where = [phase["name"] for phase in plan["phases"] for _ in phase["steps"]]
    spans: dict[str, list[float]] = {}
    for record in journal:
        if record.get("step") is not None:
            name = _BACK if record["kind"].startswith("und") else where[record["step"]]
            spans.setdefault(name, []).append(record["time"])
    return [{"name": name, "ms": round((max(t) - min(t)) * 1000, 1)} for name, t in spans.items()]


def _kinds(journal: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kind of each step of the plan; without a plan none was made."""
    plan: Mapping[str, Any] = next((r["data"]["plan"] for r in journal if r["kind"] == "planned"), {"phases": []})
    return [step["kind"] for phase in plan["phases"] for step in phase["steps"]]


def steps(journal: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each step that was done or undone, with its seconds as the executor measured them."""
    kinds = _kinds(journal)
    return [
        {"step": kinds[r["step"]], "what": r["kind"], "seconds": r["data"].get("seconds")}
        for r in journal
        if r["kind"] in ("done", "undone") and r.get("step") is not None
    ]


def marks(
    journal: Sequence[Mapping[str, Any]], ahead: Mapping[str, float], begun: float
) -> tuple[tuple[float, str], ...]:
    """(seconds since `begun`, what) of each phase's first record and of the records that turn the course.

    `ahead`: boot ID -> seconds by which that boot's clock is ahead of the one that told `begun`.
    """
    plan = next((r["data"]["plan"] for r in journal if r["kind"] == "planned"), None)
    if plan is None:
        return ()
    where = [phase["name"] for phase in plan["phases"] for _ in phase["steps"]]
    found: dict[str, float] = {}
    for record in journal:
        step, kind = record.get("step"), record["kind"]
        if kind == "started" and step is not None:
            kind = where[step]
        elif kind not in _TURNS:
            continue
        found.setdefault(kind, round(record["time"] - ahead.get(record["boot_id"], 0.0) - begun, 3))
    return tuple((when, what) for what, when in found.items())


def carried(journal: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of images that stayed in memory: files and bytes that were left there and found, and the seconds of either."""
    kinds = _kinds(journal)
    done = {kinds[r["step"]]: r["data"] for r in journal if r["kind"] == "done" and r.get("step") is not None}
    left = done.get("preserve-images", {})
    found = {f"preserve_{name}" if name == "seconds" else name: left[name] for name in left if name != "found"}
    return found | {key: value for key, value in done.get("restore", {}).items() if key.startswith("retrieve")}


MEMORY = ("placed_before_thaw", "placed_after_thaw", "faults", "events", "restarts", "fill_seconds")


def memory(journal: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the workloads got their memory: criu's seconds, and what was placed in it when, if it was filled in place."""
    kinds = _kinds(journal)
    done = {kinds[r["step"]]: r["data"] for r in journal if r["kind"] == "done" and r.get("step") is not None}
    found = {key: value for key, value in done.get("restore", {}).items() if key in ("criu_seconds", "memory")}
    return found | {key: value for key, value in done.get("fill-memory", {}).items() if key in MEMORY}


def _outcome(evidence: Evidence) -> str:
    if evidence.broke:
        return "failed"
    if evidence.refused:
        return "refused"
    ended = [r["data"].get("outcome") for r in evidence.journal if r["kind"] == "finished"]
    return str(ended[-1]) if ended else "failed"


def findings(evidence: Evidence, outcome: str) -> list[str]:
    """What is wrong; empty when the upgrade (or the rollback) lost nothing."""
    found: list[str] = []
    client, before, after = evidence.client, evidence.before, evidence.after
    if outcome == "failed":
        found.append("kupgrade apply broke" if evidence.broke else "the upgrade did not end; see status")
    found += _findings_asked(evidence, outcome)
    if evidence.cold_expected:
        return found + _findings_cold(evidence, outcome)
    wanted = evidence.new_release if outcome == "committed" else evidence.old_release
    if evidence.running_release != wanted:
        found.append(f"{evidence.running_release} runs, expected {wanted}")
    if outcome == "committed" and len(set(evidence.boot_ids)) < 2:
        found.append("the kernel was not replaced: it is the same boot")
    if not client.answered:
        found.append("no request was answered, so that nothing is known of the connections")
    if client.resets:
        found.append("the client's connection was lost")
    if not client.in_order or not client.counter_continuous:
        found.append("answers out of order, lost or repeated")
    if len(client.answered) != len(client.sent):
        found.append(f"{len(client.sent) - len(client.answered)} requests were never answered")
    if len(client.pids) > 1:
        found.append(f"answers came from different processes: {sorted(client.pids)}")
    found += client.problems[:3]
    if after is None:
        return [*found, "the workload could not be asked afterwards"]
    if after.pids != before.pids or after.main_pid != before.main_pid:
        found.append(f"processes {before.pids} became {after.pids}, main {before.main_pid} became {after.main_pid}")
    if not before.pids:
        found.append("no process of the workload was seen before")
    if not after.active:
        found.append("the unit is not active")
    if after.restarts != before.restarts:
        found.append(f"systemd restarted the unit {after.restarts - before.restarts} times")
    if after.memory != "check ok":
        found.append(f"memory: {after.memory}")
    if not file_intact(after.lines, len(before.lines)) or after.lines[: len(before.lines)] != before.lines:
        found.append("the append-only file is not continuous")
    found += [f"left behind: {name}" for name in evidence.leftovers]
    if evidence.beside:
        found += _findings_beside(evidence, outcome)
    return found


def _findings_asked(evidence: Evidence, outcome: str) -> list[str]:
    """Whether it ended so because of what was to stand in its way, or that was not there at all."""
    wished = [r["data"].get("by") for r in evidence.journal if r["kind"] == "undo-requested"]
    if outcome == "rolled-back" and evidence.rollback and not evidence.fault and OPERATOR not in wished:
        return [f"it was not the operator who took it back: {_reason(evidence.journal)}"]
    if outcome != "committed":
        return []
    found = [f"{evidence.fault} never struck: the upgrade committed"] if evidence.fatal else []
    done = [each["step"] for each in steps(evidence.journal) if each["what"] == "done"]
    if evidence.rollback and evidence.rollback not in done:
        found.append(f"nobody asked for the way back: {evidence.rollback} was no step of this upgrade")
    return found


def _findings_beside(evidence: Evidence, outcome: str) -> list[str]:
    """One kernel has all there is, and the old one was never restarted."""
    found = []
    if outcome in ("rolled-back", "refused") and len(set(evidence.boot_ids)) > 1:
        found.append("the old kernel was restarted")
    if evidence.resources_before is None or evidence.resources_after is None:
        return [*found, "CPUs, memory and devices could not be counted"]
    return found + resources.findings(evidence.resources_before, evidence.resources_after, outcome)


def _findings_cold(evidence: Evidence, outcome: str) -> list[str]:
    """After an ordinary power cut: exactly one healthy copy in its unit, and nothing left behind."""
    after = evidence.after
    found = [f"left behind: {name}" for name in evidence.leftovers]
    either = {evidence.old_release} | ({evidence.new_release} if outcome != "rolled-back" else set())
    if evidence.running_release not in either:
        found.append(f"{evidence.running_release} runs, expected {' or '.join(sorted(either))}")
    if after is None:
        return [*found, "the workload could not be asked afterwards"]
    if not after.active or after.memory != "check ok":
        found.append(f"the unit is {'active' if after.active else 'not active'}, memory: {after.memory}")
    if len(after.pids) != len(evidence.before.pids):
        found.append(f"{len(after.pids)} processes instead of {len(evidence.before.pids)}")
    if after.lines[: len(evidence.before.lines)] != evidence.before.lines:
        found.append("the append-only file lost lines")
    return found


def judge(evidence: Evidence) -> dict[str, Any]:
    """The result object of a rehearsal."""
    outcome = _outcome(evidence)
    wrong = findings(evidence, outcome)
    blackout = [r["data"]["blackout"] for r in evidence.journal if r["kind"] == "note" and "blackout" in r["data"]]
    after = evidence.after
    client = evidence.client
    seen = {"before": evidence.resources_before, "after": evidence.resources_after}
    return {
        "format": FORMAT,
        "outcome": "failed" if wrong else outcome,
        "upgrade_outcome": outcome,
        "findings": wrong,
        "reason": evidence.broke or evidence.refused or _reason(evidence.journal),
        "engine": evidence.engine,
        "store": evidence.store,
        "old_release": evidence.old_release,
        "new_release": evidence.new_release,
        "running_release": evidence.running_release,
        "boot_ids": list(evidence.boot_ids),
        "client": {
            "sent": len(client.sent),
            "answered": len(client.answered),
            "in_order": client.in_order and client.counter_continuous,
            "resets": client.resets,
            "longest_gap_ms": round(client.longest_gap * 1000, 1),
        },
        "workloads": [
            {
                "name": "demo",
                "pids_before": list(evidence.before.pids),
                "pids_after": list(after.pids) if after else [],
                "memory_intact": bool(after and after.memory == "check ok"),
                "file_intact": bool(after and file_intact(after.lines, len(evidence.before.lines))),
                "blackout_ms": round(blackout[-1].get("demo", 0.0) * 1000, 1) if blackout else 0.0,
                "unit_active": bool(after and after.active),
            }
        ],
        "phases": phases(evidence.journal),
        "steps": steps(evidence.journal),
        "handover": next((r["data"]["handover"] for r in evidence.journal if "handover" in r["data"]), {}),
        "carried": carried(evidence.journal),
        "memory": memory(evidence.journal),
        "fault": evidence.fault or None,
        "cold_start_expected": evidence.cold_expected,
        **({"resources": seen} if evidence.beside else {}),
    }


def _reason(journal: Sequence[Mapping[str, Any]]) -> str:
    for record in journal:
        if record["kind"] in ("undo-requested", "fell-back", "hands-off"):
            return str(record["data"].get("reason", ""))
    return ""

"""The engines side by side in one run: kexec with images in persistent memory, and the new kernel beside the old one.

ENGINE-in-place: the same with memory that is filled while the workload runs.

    packaging/bootstrap run python tests/bench/engines.py [--runs N] [--memory MIB ...] [--engines ENGINE ...]

Runs alternate, so that a machine that is busy for a while is so for both. Each size is upgraded N times per engine, the
smallest also taken back by an operator, and by itself after a fault in the blackout. Prints medians, ratios and each
step's share, and last a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import faults, report, scenario
from kupgrade.rehearsal.options import Options
from kupgrade.steps import registry

ENGINES = {
    "kexec": Options(engine="kexec", store="pmem", measured=True),
    "spawn": Options(engine="spawn", measured=True),
    "kexec-in-place": Options(engine="kexec", store="pmem", memory_mode="in-place", measured=True),
    "spawn-in-place": Options(engine="spawn", memory_mode="in-place", measured=True),
}
USUAL = ("kexec", "spawn")
FIGURES = ("gap_s", "blackout_s", "whole_s", "rolling_back_s")
LEAST = 0.05  # seconds; shorter steps are not told


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def figures(result: scenario.Result) -> dict[str, float]:
    """Of one rehearsal, in seconds; a figure that it does not have is left out."""
    judged = result.judged
    phases = {phase["name"]: phase["ms"] / 1000 for phase in judged["phases"]}
    marks = {what: when for when, what in result.marks}
    found = {"gap_s": judged["client"]["longest_gap_ms"] / 1000}
    if blackout := judged["workloads"][0]["blackout_ms"]:
        found["blackout_s"] = blackout / 1000
    if "finished" in marks:
        found["whole_s"] = marks["finished"] - min(marks.values())
    if "rolling back" in phases:
        found["rolling_back_s"] = phases["rolling back"]
    return found


def steps(judged: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by step; undoing one is told apart."""
    return {
        step["step"] + ("" if step["what"] == "done" else " (undone)"): step["seconds"]
        for step in judged["steps"]
        if step["seconds"] is not None
    }


def once(options: Options) -> dict[str, Any]:
    """One rehearsal; a lab that fails is told, and does not end the bench."""
    try:
        result = scenario.rehearse(options, say)
    except KupgradeError as error:
        say(f"failed: {error}")
        return {"outcome": "failed", "findings": [str(error)]}
    say(report.summary(result.judged))
    if options.keep is not None:
        scenario.write_evidence(result, options.keep)
    keys = ("outcome", "upgrade_outcome", "findings", "reason", "client")
    kept = {key: result.judged[key] for key in keys}
    return {**kept, "figures": figures(result), "steps": steps(result.judged)}


def medians(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every key, over the tables that have it."""
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: round(statistics.median(table[key] for table in tables if key in table), 3) for key in keys}


def summary(runs: Sequence[Mapping[str, Any]], wanted: str) -> dict[str, Any]:
    """The runs of one engine that ended as they should, in the middle."""
    good = [run for run in runs if run["outcome"] == wanted]
    return {
        "runs": len(runs),
        "good": len(good),
        "figures": medians([run["figures"] for run in good]),
        "spread": {
            key: [round(value, 2) for value in sorted(run["figures"][key] for run in good if key in run["figures"])]
            for key in FIGURES
        },
        "steps": medians([run["steps"] for run in good]),
    }


def told(name: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """One case: a line a figure with its ratio, then the steps of both engines."""
    lines = [
        f"{name}: " + ", ".join(f"{engine} {each['good']} of {each['runs']} good" for engine, each in found.items())
    ]
    for key in FIGURES:
        values = {engine: each["figures"][key] for engine, each in found.items() if key in each["figures"]}
        if not values:
            continue
        shown = "  ".join(f"{engine} {value:.2f} {found[engine]['spread'][key]}" for engine, value in values.items())
        both = (
            f"  ratio {values['spawn'] / values['kexec']:.3f}" if set(values) == set(USUAL) and values["kexec"] else ""
        )
        lines.append(f"  {key:16}{shown}{both}")
    for engine in found:
        lines += [
            f"    {engine:6} {seconds:9.3f} s  {step}"
            for step, seconds in found[engine]["steps"].items()
            if seconds >= LEAST
        ]
    return "\n".join(lines)


def main() -> int:
    """All cases, each told as soon as it is over; exit status 1 when a run did not end as it should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3, help="of each engine and case (%(default)s)")
    parser.add_argument("--memory", type=int, nargs="+", default=[64, 1024], help="MiB of the workload (%(default)s)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(USUAL))
    parser.add_argument("--rollback", default="pre-dump", help="step after which the operator takes it back; '': never")
    parser.add_argument("--fault", default="probe-fails", help="in the blackout, of the smallest; '': none")
    parser.add_argument("--from", dest="old", default="trixie")
    parser.add_argument("--to", dest="new", default="trixie-backports")
    parser.add_argument("--dirty", type=int, default=0, help="percent of the memory rewritten a second")
    parser.add_argument("--timeout", type=float, default=420.0, help="seconds for one upgrade")
    parser.add_argument("--keep", type=Path, help="keep every run's logs below this directory")
    wanted = parser.parse_args()
    common: dict[str, Any] = {"old": wanted.old, "new": wanted.new, "dirty": wanted.dirty, "timeout": wanted.timeout}
    cases = [(f"upgrade {size} MiB", "committed", {"memory": size}) for size in wanted.memory]
    if wanted.rollback:
        smallest = min(wanted.memory)
        changes = {"memory": smallest, "rollback": wanted.rollback}
        cases.append((f"rollback after {wanted.rollback}, {smallest} MiB", "rolled-back", changes))
    if wanted.fault:
        smallest = min(wanted.memory)
        changes = {"memory": smallest, "faults": (faults.parse(wanted.fault, registry.names(), "spawn"),)}
        cases.append((f"{wanted.fault}, {smallest} MiB", "rolled-back", changes))
    results: dict[str, Any] = {}
    for name, outcome, changes in cases:
        runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in wanted.engines}
        for number in range(wanted.runs):
            for engine in wanted.engines:
                base = ENGINES[engine]
                say(f"{name}, {engine}, {number + 1} of {wanted.runs}")
                keep = wanted.keep / f"{name}-{engine}-{number + 1}".replace(" ", "-") if wanted.keep else None
                runs[engine].append(once(replace(base, **common, **changes, keep=keep)))
        results[name] = {engine: {**summary(all_, outcome), "each": all_} for engine, all_ in runs.items()}
        print(told(name, results[name]), flush=True)
    print(json.dumps(results))
    return int(any(each["good"] < each["runs"] for found in results.values() for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())

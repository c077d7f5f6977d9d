"""A table of faults: what an upgrade comes to when it is struck there, in virtual hosts, as Markdown.

    packaging/bootstrap run python tests/bench/faults.py [--engine ENGINE] [--keep DIR] [FAULT ...]

Faults at steps follow one another in one life of a virtual host for as long as each upgrade is taken back; the others
get a virtual host each. Without faults: kills and power cuts at every step, and every other kind where it matters.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import faults, scenario
from kupgrade.rehearsal.faults import Fault
from kupgrade.rehearsal.options import Options
from kupgrade.steps import registry

STEPS = {
    "kexec": "stage-initrd load-kernel pre-dump gate hold-units lock-network freeze dump cross restore probe thaw "
    "unlock-network release-units mark-good wipe-images",
    "spawn": "build-standby take-cpus take-memory spawn-kernel ready-standby ship-images gate hold-units lock-network "
    "freeze dump hand-over restore probe take-disk thaw unlock-network start-system adopt-units mark-good retire-old",
}
OTHERS = {
    "kexec": (*faults.WHOLE, "kill-tool@cross:frozen"),
    "spawn": (
        *faults.BESIDE_WHOLE,
        *(f"kill-tool@hand-over:{moment}" for moment in faults.WITHIN),
        *(
            f"{kind}@{step}"
            for kind in faults.BESIDE_AT_STEP[2:]
            for step in ("ready-standby", "dump", "restore:effect")
        ),
        "hang-new-kernel@thaw",
        faults.AFTER_COMMIT,
    ),
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def every(engine: str, store: str) -> Iterator[str]:
    """All faults that are run when none is named; with images in memory those that strike them, too."""
    if store == "luo":
        yield from (f"kill-tool@preserve-images:{moment}" for moment in ("intent", "effect"))
        yield from faults.IN_MEMORY
    for kind in faults.AT_STEP:
        for number, step in enumerate(STEPS[engine].split()):
            yield f"{kind}@{step}:{('intent', 'effect')[number % 2]}"
    yield from OTHERS[engine]


def lives(chosen: Sequence[Fault]) -> Iterator[list[Fault]]:
    """Which of them can share a virtual host."""
    together: list[Fault] = []
    for fault in chosen:
        if fault.repeatable:
            together.append(fault)
        else:
            yield [fault]
    if together:
        yield together


def row(judged: Mapping[str, Any]) -> str:
    """One line of the table."""
    client, what = judged["client"], judged["findings"]
    ended = judged["upgrade_outcome"] + (" (an ordinary power cut)" if judged["cold_start_expected"] else "")
    verdict = "; ".join(what) if what else "nothing lost"
    gap = "-" if judged["cold_start_expected"] else f"{client['longest_gap_ms'] / 1000:.1f}"
    return f"| {judged['fault']} | {ended} | {gap} | {client['answered']}/{client['sent']} | {verdict} |"


def one_life(options: Options, left: list[Fault]) -> Iterator[Mapping[str, Any]]:
    """Upgrades in one virtual host, each with the next fault, until one is not taken back."""
    result = scenario.rehearse(options, say)
    if options.keep is not None:
        scenario.write_evidence(result, options.keep)
    generations = result.judged.get("generations", [result.judged])
    del left[: len(generations)]
    yield from generations


def main() -> int:
    """Each row as soon as its virtual host has ended; exit status 1 when anything was lost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("faults", nargs="*", metavar="FAULT")
    parser.add_argument("--engine", choices=sorted(STEPS), default="spawn")
    parser.add_argument("--store", default="auto")
    parser.add_argument("--from", dest="old", default="trixie")
    parser.add_argument("--to", dest="new", default="trixie-backports")
    parser.add_argument("--memory", type=int, default=64, help="MiB of the workload")
    parser.add_argument("--keep", type=Path, help="keep every virtual host's logs below this directory")
    wanted = parser.parse_args()
    names = wanted.faults or list(every(wanted.engine, wanted.store))
    chosen = [faults.parse(name, registry.names(), wanted.engine) for name in names]
    print("| fault | ended | gap s | answered | |\n|---|---|---|---|---|", flush=True)
    all_judged: list[Mapping[str, Any]] = []
    for number, group in enumerate(lives(chosen)):
        while group:
            keep = wanted.keep / f"{number}-{len(group)}-{group[0]}" if wanted.keep else None
            options = Options(
                engine=wanted.engine,
                store=wanted.store,
                old=wanted.old,
                new=wanted.new,
                memory=wanted.memory,
                faults=tuple(group),
                keep=keep,
            )
            try:
                for judged in one_life(options, group):
                    all_judged.append(judged)
                    print(row(judged), flush=True)
            except KupgradeError as error:
                print(f"| {group.pop(0)} | the lab failed | - | - | {error} |", flush=True)
                all_judged.append({"findings": [str(error)]})
    print(json.dumps(all_judged))
    return int(any(judged["findings"] for judged in all_judged))


if __name__ == "__main__":
    sys.exit(main())

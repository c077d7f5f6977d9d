"""The stores of the kexec engine side by side in one run: disk, persistent memory, memory that stays (luo), and naive.

STORE-in-place: the same with memory that is filled while the workload runs.

    packaging/bootstrap run python tests/bench/stores.py [--memory MIB ...] [--stores STORE ...] [--plot FILE]

Runs alternate between the stores, on one pair of kernels that can do all of them, with the same command line and the
same virtual host. Its disk is as fast as --disk-rate says, by default as that of a cloud's virtual machine: images on
one that lies in this machine's memory would be images in memory. `naive` is naive.sh: stop, dump to disk, kexec,
restore, without anything clever. Prints medians, each one's share by phase, what a GiB more costs, and last a JSON
object; --plot writes a page with the gaps.
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
from kupgrade.rehearsal import scenario, virtual_host
from kupgrade.rehearsal.options import Options, kernel_line
from tests.bench.engines import figures, medians, steps
from tests.bench.naive import naive

NAIVE = "naive"
IN_PLACE = "-in-place"  # of a store's name: memory is filled while the workload runs
STORES = (NAIVE, "disk", "pmem", "luo", "disk-in-place", "pmem-in-place", "luo-in-place")
USUAL = (NAIVE, "disk", "pmem", "luo", "luo-in-place")
MIB_PER_GIB = 1024
# Phases of the blackout, as sums of steps; what is left is the way to the new kernel's agent.
PHASES = {
    "lock": ("hold-units", "arm-watchdog", "lock-network"),
    "dump": ("freeze", "dump"),
    "preserve": ("preserve-images",),
    "restore": ("restore",),
    "serve": ("probe", "disarm", "thaw", "unlock-network"),
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def once(options: Options, store: str) -> dict[str, Any]:
    """One upgrade; a lab that fails is told, and does not end the bench."""
    try:
        if store == NAIVE:
            host = virtual_host.build(options.old, options.new, say, boot="direct", line=kernel_line(options))
            found = naive(host, options, options.keep)
            say(f"naive: gap {found['gap_s']:.2f} s")
            gap, problems = {"gap_s": found["gap_s"]}, found["problems"]
            return {"good": found["good"], "figures": gap, "steps": {}, "problems": problems}
        mode, kind = "in-place" if store.endswith(IN_PLACE) else "copy", store.removesuffix(IN_PLACE)
        result = scenario.rehearse(replace(options, store=kind, memory_mode=mode), say)
    except KupgradeError as error:
        say(f"failed: {error}")
        return {"good": False, "figures": {}, "steps": {}, "problems": [str(error)]}
    judged = result.judged
    if options.keep is not None:
        scenario.write_evidence(result, options.keep)
    told = figures(result)
    say(f"{store}: {judged['outcome']}, gap {told['gap_s']:.2f} s {judged['findings'] or ''}")
    good = judged["outcome"] == "committed" and judged["store"] == kind
    good &= mode == "copy" or judged["memory"].get("memory") == "in place"
    return {"good": good, "figures": told, "steps": steps(judged), "problems": judged["findings"]}


def phases(taken: Mapping[str, float], blackout: float) -> dict[str, float]:
    """Seconds of the blackout by phase."""
    found = {name: sum(taken.get(step, 0.0) for step in members) for name, members in PHASES.items()}
    found["boot"] = blackout - sum(found.values())
    return {name: round(value, 3) for name, value in found.items()}


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """Seconds that a GiB more costs, by least squares; None with a single size."""
    if len({size for size, _ in points}) < 2:
        return None
    found = statistics.linear_regression([size / MIB_PER_GIB for size, _ in points], [gap for _, gap in points])
    return round(found.slope, 3)


def table(results: Mapping[int, Mapping[str, Mapping[str, Any]]], stores: Sequence[str]) -> str:
    """Gaps by size and store, their ratios to disk and pmem, phases, slopes."""
    lines = ["size MiB  " + "".join(f"{store:>18}" for store in stores)]
    for size, by_store in results.items():
        cells = []
        for store in stores:
            gap = by_store[store]["medians"].get("gap_s")
            cells.append(f"{'-' if gap is None else f'{gap:.2f} s':>18}")
        lines.append(f"{size:8}  " + "".join(cells))
        for store in stores:
            each = by_store[store]
            if each["phases"]:
                shares = ", ".join(f"{name} {seconds:.2f}" for name, seconds in each["phases"].items())
                lines.append(f"    {store}: {shares}; gaps {each['gaps']}")
    for store in stores:
        points = [(size, gap) for size, by_store in results.items() for gap in by_store[store]["gaps"]]
        cost = slope(points)
        if cost is not None:
            lines.append(f"{store}: {cost:.2f} s for a GiB more")
    return "\n".join(lines)


COLOURS = {NAIVE: "#888", "disk": "#c40", "pmem": "#07a", "luo": "#080"}
COLOURS |= {"disk-in-place": "#f96", "pmem-in-place": "#5cf", "luo-in-place": "#4c4"}


def plot(results: Mapping[int, Mapping[str, Mapping[str, Any]]], stores: Sequence[str]) -> str:
    """A page with the median gaps over the size: nothing but SVG."""
    width, height, edge = 720, 400, 60
    widest = max(results)
    highest = max((gap for by in results.values() for s in stores for gap in by[s]["gaps"]), default=1.0)

    def place(size: int, gap: float) -> str:
        x, y = edge + size / widest * (width - 2 * edge), height - edge - gap / highest * (height - 2 * edge)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    for number, store in enumerate(stores):
        points = [(size, by[store]["medians"]["gap_s"]) for size, by in results.items() if by[store]["gaps"]]
        line = " ".join(place(*point) for point in points)
        parts.append(f'<polyline fill="none" stroke="{COLOURS[store]}" stroke-width="2" points="{line}"/>')
        parts.append(f'<text x="{edge}" y="{20 + 16 * number}" fill="{COLOURS[store]}">{store}</text>')
    parts.append(f'<text x="{width - edge}" y="{height - 20}" text-anchor="end">{widest} MiB</text>')
    parts.append(f'<text x="5" y="{edge}">{highest:.1f} s</text></svg>')
    return "<!doctype html><title>Gap over the size of the workload</title>" + "\n".join(parts) + "\n"


def main() -> int:
    """All sizes; exit status 1 when a run did not end as it should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1, help="of each store and size (%(default)s)")
    parser.add_argument("--memory", type=int, nargs="+", default=[64, 512, 2048], help="MiB of the workload")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(USUAL))
    parser.add_argument("--from", dest="old", default="khokernel-7.2")
    parser.add_argument("--to", dest="new", default="khokernel-7.3")
    parser.add_argument("--dirty", type=int, default=0, help="percent of the memory rewritten a second")
    parser.add_argument("--disk-rate", type=int, default=200, metavar="MB", help="a second of the disk; 0: as memory")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one upgrade")
    parser.add_argument("--keep", type=Path, help="keep every run's logs below this directory")
    parser.add_argument("--plot", type=Path, help="write a page with the gaps over the size")
    wanted = parser.parse_args()
    results: dict[int, dict[str, Any]] = {}
    good = True
    for size in wanted.memory:
        runs: dict[str, list[dict[str, Any]]] = {store: [] for store in wanted.stores}
        for number in range(wanted.runs):
            for store in wanted.stores:
                say(f"{size} MiB, {store}, {number + 1} of {wanted.runs}")
                keep = wanted.keep / f"{size}-{store}-{number + 1}" if wanted.keep else None
                options = Options(
                    engine="kexec", old=wanted.old, new=wanted.new, memory=size, dirty=wanted.dirty,
                    timeout=wanted.timeout, measured=True, keep=keep, disk_rate=wanted.disk_rate * 1_000_000,
                )  # fmt: skip
                runs[store].append(once(options, store))
        results[size] = {}
        for store, each in runs.items():
            fine = [run for run in each if run["good"]]
            good &= len(fine) == len(each)
            middle = medians([run["figures"] for run in fine])
            taken = medians([run["steps"] for run in fine])
            results[size][store] = {
                "medians": middle,
                "gaps": sorted(round(run["figures"]["gap_s"], 2) for run in fine),
                "phases": phases(taken, middle["blackout_s"]) if "blackout_s" in middle else {},
                "runs": each,
            }
        print(table(results, wanted.stores), flush=True)
    if wanted.plot:
        wanted.plot.write_text(plot(results, wanted.stores))
    print(json.dumps(results))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""A rehearsal as text, and as one self-contained HTML page with the client's latency over time."""

from __future__ import annotations

import html as markup
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kupgrade.rehearsal import resources

if TYPE_CHECKING:
    from kupgrade.rehearsal.scenario import Result

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 960, 320, 60, 30
_FLOOR = 1e-3  # seconds; the axis is logarithmic


def text(result: Result) -> str:
    """Verdict, client, workloads, phases and steps; of several upgrades one after the other."""
    told = [_upgrade(judged) for judged in result.judged.get("generations", [result.judged])]
    if missing := result.judged.get("not_made"):
        told.append(f"asked for, and never made: {', '.join(missing)}")
    return "\n".join(told)


def _upgrade(judged: Mapping[str, Any]) -> str:
    client = judged["client"]
    lines = [
        f"{judged['outcome']}: {judged['old_release']} -> {judged['new_release']}, running {judged['running_release']}"
        + (f" ({judged['reason']})" if judged["reason"] else ""),
        (
            f"client: {client['answered']} of {client['sent']} requests answered"
            f"{' in order' if client['in_order'] else ', NOT in order'}, {client['resets']} resets,"
            f" longest gap {client['longest_gap_ms'] / 1000:.2f} s"
        ),
    ]
    for workload in judged["workloads"]:
        kept = workload["pids_before"] == workload["pids_after"]
        lines.append(
            f"{workload['name']}: stood still {workload['blackout_ms'] / 1000:.2f} s,"
            f" PIDs {'kept' if kept else 'CHANGED'}, memory {'intact' if workload['memory_intact'] else 'DAMAGED'},"
            f" file {'intact' if workload['file_intact'] else 'DAMAGED'},"
            f" unit {'active' if workload['unit_active'] else 'NOT active'}"
        )
    counted = judged.get("resources", {})
    if counted.get("before") and counted.get("after"):
        lines.append(resources.summary(counted["before"], counted["after"]))
    lines += [f"finding: {finding}" for finding in judged["findings"]]
    lines.append("timeline:")
    lines += [f"  {phase['ms'] / 1000:9.2f} s  {phase['name']}" for phase in judged["phases"]]
    lines += [
        f"    {step['seconds']:9.3f} s  {step['step']}{'' if step['what'] == 'done' else ' (undone)'}"
        for step in judged["steps"]
        if step["seconds"] is not None and step["seconds"] >= 0.05
    ]
    if parts := judged.get("handover"):
        ordered = sorted(parts.items(), key=lambda each: each[1])
        lines.append("  hand-over: " + ", ".join(f"{what} {at:.2f} s" for what, at in ordered))
    carried = judged.get("carried", {})
    if "files" in carried:
        found = f", found in {carried['retrieve_seconds']:.2f} s" if "retrieve_seconds" in carried else ""
        lines.append(
            f"  in memory: {carried['files']} files, {carried['bytes'] / 1e6:.0f} MB, left there in"
            f" {carried['preserve_seconds']:.2f} s{found}"
        )
    filled = judged.get("memory", {})
    if "fill_seconds" in filled:
        lines.append(
            f"  memory in place: criu {filled.get('criu_seconds', 0.0):.2f} s; placed"
            f" {filled['placed_before_thaw'] / 1e6:.0f} MB before the workloads ran,"
            f" {filled['placed_after_thaw'] / 1e6:.0f} MB after, all in {filled['fill_seconds']:.2f} s,"
            f" {filled['faults']} times because somebody waited"
        )
    elif filled.get("memory"):
        lines.append(f"  memory {filled['memory']}")
    return "\n".join(lines)


def html(result: Result) -> str:
    """One page, no outside resources."""
    judged = result.judged
    title = f"Rehearsal: {judged['outcome']}"
    rows = "".join(
        f"<tr><td>{markup.escape(str(s['step']))}</td><td>{markup.escape(str(s['what']))}</td>"
        f"<td>{s['seconds'] if s['seconds'] is not None else ''}</td></tr>"
        for s in judged["steps"]
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>" + markup.escape(title) + "</title>"
        "<style>body{font:14px sans-serif;margin:2em;max-width:1000px}pre{background:#f4f4f4;padding:1em;"
        "overflow:auto}td,th{padding:2px 10px;text-align:left}svg{border:1px solid #ccc}</style>"
        f"<h1>{markup.escape(title)}</h1><pre>{markup.escape(text(result))}</pre>"
        "<h2>Latency of each request over time</h2>"
        + plot(result.latencies, blackouts(result.latencies), result.marks)
        + f"<h2>Steps</h2><table><tr><th>step<th>what<th>seconds</tr>{rows}</table>"
        f"<h2>Result</h2><pre>{markup.escape(json.dumps(dict(judged), indent=1))}</pre></html>\n"
    )


def blackouts(latencies: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(begin, end) in seconds of the spans in which no answer came for more than a second."""
    ends = sorted(sent + took for sent, took in latencies)
    return [(a, b) for a, b in itertools.pairwise(ends) if b - a > 1.0]


def plot(
    latencies: Sequence[tuple[float, float]],
    marked: Sequence[tuple[float, float]],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """An SVG: send time to the right, latency upward on a logarithmic axis, silences shaded, events as lines."""
    if not latencies:
        return "<p>No request was answered.</p>"
    last = max(sent + took for sent, took in latencies)
    top = max(1.0, *(took for _, took in latencies))
    decades = math.log10(top / _FLOOR)

    def x(seconds: float) -> float:
        return _LEFT + seconds / last * (_WIDTH - _LEFT - 10)

    def y(took: float) -> float:
        share = math.log10(max(took, _FLOOR) / _FLOOR) / decades
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - 10)

    shades = "".join(
        f'<rect x="{x(a):.1f}" y="10" width="{x(b) - x(a):.1f}" height="{_HEIGHT - _BOTTOM - 10}" fill="#fdd"/>'
        f'<text x="{x(a) + 4:.1f}" y="24" font-size="12">{b - a:.2f} s</text>'
        for a, b in marked
    )
    ticks = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#eee"/>'
        f'<text x="4" y="{y(v) + 4:.1f}" font-size="11">{v * 1000:g} ms</text>'
        for v in (0.001, 0.01, 0.1, 1.0, 10.0)
        if v <= top
    )
    axis = "".join(
        f'<text x="{x(s):.1f}" y="{_HEIGHT - 8}" font-size="11">{s:.0f} s</text>'
        for s in (last * part / 6 for part in range(6))
    )
    events = "".join(
        f'<line x1="{x(when):.1f}" x2="{x(when):.1f}" y1="30" y2="{_HEIGHT - _BOTTOM}" stroke="#c60"'
        f' stroke-dasharray="3"/><text x="{x(when) + 3:.1f}" y="{40 + 13 * (row % 9)}" font-size="11"'
        f' fill="#c60">{markup.escape(what)}</text>'
        for row, (when, what) in enumerate(marks)
        if 0 <= when <= last
    )
    points = " ".join(f"{x(sent):.1f},{y(took):.1f}" for sent, took in _thin(latencies))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">'
        f'{shades}{ticks}{axis}{events}<polyline points="{points}" fill="none" stroke="#06c" stroke-width="1"/></svg>'
    )


def _thin(latencies: Sequence[tuple[float, float]], most: int = 4000) -> list[tuple[float, float]]:
    """At most `most` points: of each bucket the slowest request, so that no gap is lost."""
    size = max(1, math.ceil(len(latencies) / most))
    return [max(latencies[i : i + size], key=lambda p: p[1]) for i in range(0, len(latencies), size)]


def summary(judged: Mapping[str, Any]) -> str:
    """One line for tables."""
    client = judged["client"]
    gap = client["longest_gap_ms"] / 1000
    return f"{judged['outcome']}, gap {gap:.2f} s, {client['answered']}/{client['sent']}, resets {client['resets']}"

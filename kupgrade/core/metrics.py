"""What a monitoring system is told: OpenMetrics text, which node_exporter's textfile collector reads as well.

Both formats agree on this much: gauges, one counter, labels, `# EOF`, which is a comment in the older one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kupgrade.core.chronicle import HistoryEntry

OUTCOMES = ("committed", "rolled-back", "hands-off", "abandoned", "damaged")
_OVER = ("committed", "rolled-back", "hands-off")
Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True, slots=True)
class Situation:
    """What runs now. `open`: an upgrade is; `hands_off`: and it needs a person."""

    version: str
    release: str
    open: bool
    hands_off: bool


def metrics_text(history: Sequence[HistoryEntry], now: Situation) -> str:
    """The whole file."""
    counted = Counter(entry.outcome for entry in history)
    last = next((entry for entry in reversed(history) if entry.outcome in _OVER), None)
    lines = [
        *_family("kupgrade_info", "gauge", "What is installed and what runs.", [
            ({"version": now.version, "running_release": now.release}, 1.0),
        ]),
        *_family("kupgrade_upgrade_pending", "gauge", "Whether an upgrade is open.", [({}, float(now.open))]),
        *_family("kupgrade_needs_person", "gauge", "Whether it needs a person.", [({}, float(now.hands_off))]),
        *_family("kupgrade_upgrades", "counter", "Upgrades on this host by outcome.", [
            ({"outcome": outcome}, float(counted[outcome])) for outcome in OUTCOMES
        ]),
        *(_last(last) if last else ()),
        "# EOF",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _last(entry: HistoryEntry) -> Iterator[str]:
    name = "kupgrade_last_upgrade"
    about = {
        "upgrade": entry.upgrade, "outcome": entry.outcome, "old_release": entry.old_release,
        "new_release": entry.new_release, "engine": entry.engine, "store": entry.store,
    }  # fmt: skip
    yield from _family(f"{name}_info", "gauge", "The last upgrade that ended, or needs a person.", [(about, 1.0)])
    committed = float(entry.outcome == "committed")
    yield from _family(f"{name}_committed", "gauge", "Whether it was committed.", [({}, committed)])
    started: list[Sample] = [({}, entry.started)]
    yield from _family(f"{name}_started_timestamp_seconds", "gauge", "When it began, since 1970.", started)
    if entry.finished is not None:
        finished: list[Sample] = [({}, entry.finished)]
        took: list[Sample] = [({}, max(0.0, entry.finished - entry.started))]
        yield from _family(f"{name}_finished_timestamp_seconds", "gauge", "When it ended, since 1970.", finished)
        yield from _family(f"{name}_duration_seconds", "gauge", "How long it took.", took)
    if entry.blackout:
        still = [({"workload": workload}, seconds) for workload, seconds in entry.blackout.items()]
        yield from _family(f"{name}_blackout_seconds", "gauge", "How long each workload stood still.", still)


def _family(name: str, kind: str, about: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        suffix = "_total" if kind == "counter" else ""
        yield f"{name}{suffix}{{{inside}}} {value:.17g}" if inside else f"{name}{suffix} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""What earlier upgrades of this host teach about the next one's blackout."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from kupgrade.core.chronicle import HistoryEntry

_RECENT = 3  # upgrades
_MOST = 20.0  # times: more says something about that upgrade, not about this host
_LEAST = 0.05  # seconds: a prediction below that is none


def lateness(history: Sequence[HistoryEntry], engine: str) -> float:
    """How many times longer than predicted the last committed upgrades by `engine` took; at least 1.

    The median of the last three, each by the workload that it was worst for. A prediction is never made shorter by it:
    that an upgrade was quick once is no promise. `history`: oldest first.
    """
    found = [late for each in history if each.outcome == "committed" and each.engine == engine if (late := _late(each))]
    return round(min(_MOST, max(1.0, statistics.median(found[-_RECENT:]))), 2) if found else 1.0


def _late(entry: HistoryEntry) -> float:
    """0: nothing was measured, or nothing predicted."""
    both = (name for name in entry.blackout if entry.predicted.get(name, 0.0) >= _LEAST)
    return max((entry.blackout[name] / entry.predicted[name] for name in both), default=0.0)

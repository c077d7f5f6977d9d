"""Windows as intervals of real time: when one is open, until when, and when the next one opens. Pure.

A local time that the clocks skip is taken as if they had not been changed yet (02:30 becomes 03:30); one that comes
twice counts the first time only. Windows that touch or overlap are one.
"""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from kupgrade.model.schedule import Day, Window

_DAY = 86400.0
_DAYS = tuple(Day)
_AHEAD = 15  # days: every weekly window opens within them, twice
LONGEST = 7 * _DAY  # seconds; of one window


@dataclass(frozen=True, slots=True)
class Opening:
    """From `begin` to `end`, seconds since the epoch; the end does not belong to it."""

    begin: float
    end: float


ALWAYS = Opening(-math.inf, math.inf)


@functools.cache
def zone(name: str) -> datetime.tzinfo:
    """The time zone; raises ValueError, KeyError or OSError for one that is not known here.

    UTC needs no data of the system's.
    """
    return datetime.UTC if name == "UTC" else ZoneInfo(name)


def current(windows: Sequence[Window], now: float) -> Opening | None:
    """The opening that holds `now`; without any window there is always one."""
    if not windows:
        return ALWAYS
    return next((each for each in openings(windows, now) if each.begin <= now < each.end), None)


def following(windows: Sequence[Window], now: float, need: float = 0.0) -> Opening | None:
    """The first opening after `now` that is `need` seconds long; None: no window ever is."""
    return next((each for each in openings(windows, now) if each.begin > now and each.end - each.begin >= need), None)


def openings(windows: Iterable[Window], now: float) -> tuple[Opening, ...]:
    """All openings around `now` in order, without overlap: from one that may hold it to two weeks ahead."""
    merged: list[Opening] = []
    for each in sorted((o for window in windows for o in _of(window, now)), key=lambda o: (o.begin, o.end)):
        if merged and each.begin <= merged[-1].end:
            merged[-1] = Opening(merged[-1].begin, max(merged[-1].end, each.end))
        else:
            merged.append(each)
    return tuple(merged)


def _of(window: Window, now: float) -> Iterator[Opening]:
    clocks = zone(window.time_zone)
    today = datetime.datetime.fromtimestamp(now, clocks).date()
    # Two longest windows back: those that touch each other are one, as far as it matters for what is left of them.
    back = 2 * math.ceil(LONGEST / _DAY) + 1
    at = datetime.time(window.start // 60, window.start % 60)
    for offset in range(-back, _AHEAD + 1):
        day = today + datetime.timedelta(days=offset)
        if _DAYS[day.weekday()] in window.days:
            begin = datetime.datetime.combine(day, at, clocks).timestamp()
            yield Opening(begin, begin + window.length)

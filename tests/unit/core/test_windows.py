"""Windows: what is open when, over midnight, the end of the week and changes of the clocks."""

from __future__ import annotations

import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.core.windows import ALWAYS, LONGEST, current, following, openings
from kupgrade.model.schedule import Day, Window

HOUR = 3600.0
BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


def at(text: str) -> float:
    """A time written in UTC."""
    return datetime.datetime.fromisoformat(text + "+00:00").timestamp()


def when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def window(days: str, start: str, hours: float, zone: str = "UTC") -> Window:
    hour, minute = map(int, start.split(":"))
    chosen = tuple(Day(day) for day in days.split()) if days else tuple(Day)
    return Window(hour * 60 + minute, hours * HOUR, chosen, zone)


# 2026-11-21 is a Saturday. Clocks: Berlin 2026-03-29 02:00 -> 03:00 and 2026-10-25 03:00 -> 02:00; New York 2026-03-08
# and 2026-11-01; Lord Howe by half an hour, 2026-04-05 02:00 -> 01:30.
CASES = {
    "plain": (window("", "02:00", 2), "2026-11-21 03:00", "2026-11-21 02:00", "2026-11-21 04:00"),
    "its first second": (window("", "02:00", 2), "2026-11-21 02:00", "2026-11-21 02:00", "2026-11-21 04:00"),
    "its end is outside": (window("", "02:00", 2), "2026-11-21 04:00", "", ""),
    "another day": (window("sun", "02:00", 2), "2026-11-21 03:00", "", ""),
    "over midnight, before": (window("fri", "23:00", 3), "2026-11-20 23:30", "2026-11-20 23:00", "2026-11-21 02:00"),
    "over midnight, after": (window("fri", "23:00", 3), "2026-11-21 01:30", "2026-11-20 23:00", "2026-11-21 02:00"),
    "over the week's end": (window("sun", "22:00", 4), "2026-11-23 01:00", "2026-11-22 22:00", "2026-11-23 02:00"),
    "over two nights": (window("fri", "20:00", 58), "2026-11-23 05:00", "2026-11-20 20:00", "2026-11-23 06:00"),
    "summer time": (window("", "02:00", 1, BERLIN), "2026-07-01 00:30", "2026-07-01 00:00", "2026-07-01 01:00"),
    "winter time": (window("", "02:00", 1, BERLIN), "2026-12-01 01:30", "2026-12-01 01:00", "2026-12-01 02:00"),
    "local day, not UTC's": (
        window("mon", "00:30", 1, BERLIN), "2026-11-22 23:45", "2026-11-22 23:30", "2026-11-23 00:30",
    ),
    "spring: a start that is skipped comes an hour later": (
        window("", "02:30", 1, BERLIN), "2026-03-29 01:45", "2026-03-29 01:30", "2026-03-29 02:30",
    ),
    "spring: the length is real time": (
        window("", "01:00", 4, BERLIN), "2026-03-29 03:59", "2026-03-29 00:00", "2026-03-29 04:00",
    ),
    "autumn: a start that comes twice counts the first time": (
        window("", "02:30", 1, BERLIN), "2026-10-25 00:45", "2026-10-25 00:30", "2026-10-25 01:30",
    ),
    "autumn: not the second time": (window("", "02:30", 0.5, BERLIN), "2026-10-25 01:45", "", ""),
    "autumn: the length is real time": (
        window("", "01:00", 4, BERLIN), "2026-10-25 02:59", "2026-10-24 23:00", "2026-10-25 03:00",
    ),
    "spring in New York": (
        window("sun", "02:30", 1, NEW_YORK), "2026-03-08 07:45", "2026-03-08 07:30", "2026-03-08 08:30",
    ),
    "half an hour": (
        window("", "01:45", 1, LORD_HOWE), "2026-04-04 15:00", "2026-04-04 14:45", "2026-04-04 15:45",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_open(name: str) -> None:
    """An opening is known with its begin and end, in real time."""
    one, now, begin, end = CASES[name]
    found = current((one,), at(now))
    assert (begin, end) == ("", "") if found is None else (when(found.begin), when(found.end)) == (begin, end)


def test_without_windows_it_is_always_open() -> None:
    """No window means no limit."""
    assert current((), 1.8e9) is ALWAYS


NEXT = {
    "tomorrow": ((window("", "02:00", 2),), "2026-11-21 04:00", 0.0, "2026-11-22 02:00"),
    "next week": ((window("sat", "02:00", 2),), "2026-11-21 04:00", 0.0, "2026-11-28 02:00"),
    "the open one is not the next": ((window("sat", "02:00", 2),), "2026-11-21 02:00", 0.0, "2026-11-28 02:00"),
    "one that is long enough": (
        (window("mon", "02:00", 1), window("thu", "02:00", 3)), "2026-11-21 04:00", 2 * HOUR, "2026-11-26 02:00",
    ),
    "two that touch are long enough": (
        (window("mon", "22:00", 2), window("tue", "00:00", 2)), "2026-11-21 04:00", 3 * HOUR, "2026-11-23 22:00",
    ),
    "none is": ((window("", "02:00", 1),), "2026-11-21 04:00", 2 * HOUR, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", NEXT)
def test_what_opens_next(name: str) -> None:
    """The next opening that is long enough is told, or that there never is one."""
    windows, now, need, begin = NEXT[name]
    found = following(windows, at(now), need)
    assert (when(found.begin) if found else "") == begin


WINDOWS = st.builds(
    Window,
    start=st.integers(0, 1439),
    length=st.floats(900, LONGEST),
    days=st.sets(st.sampled_from(list(Day)), min_size=1).map(tuple),
    time_zone=st.sampled_from(["UTC", BERLIN, NEW_YORK, LORD_HOWE, "Africa/Casablanca", "Pacific/Apia"]),
)
MOMENTS = st.floats(at("2001-01-01 00:00"), at("2036-01-01 00:00"))


@given(st.lists(WINDOWS, min_size=1, max_size=3), MOMENTS)
def test_openings_are_in_order_and_apart(windows: list[Window], now: float) -> None:
    """Merged, sorted, none empty; the current one holds the moment and the next one begins after it."""
    found = openings(windows, now)
    assert all(each.begin < each.end for each in found)
    assert all(one.end < other.begin for one, other in pairwise(found))
    here, later = current(windows, now), following(windows, now)
    assert here is None or here.begin <= now < here.end
    assert later is not None or (here is not None and here.end > now + LONGEST)  # one that never closes
    assert later is None or later.begin > (now if here is None else here.end)


@given(WINDOWS, MOMENTS)
def test_the_future_is_as_it_was_told(window: Window, now: float) -> None:
    """At the begin of the next opening that very opening is the current one, and a second before it is not open."""
    if (later := following((window,), now)) is None:
        return  # it never closes
    found = current((window,), later.begin)
    assert found is not None and found.begin == later.begin and found.end >= min(later.end, later.begin + window.length)
    before = current((window,), later.begin - 1)
    assert before is None


@given(WINDOWS.filter(lambda w: w.length < 80000 and w.time_zone != "Pacific/Apia"), MOMENTS)
def test_it_opens_on_its_days_at_its_time(window: Window, now: float) -> None:
    """By the clocks of its zone it opens on a day of its own at its start, or later by what the clocks skipped."""
    later = following((window,), now)
    assert later is not None
    local = datetime.datetime.fromtimestamp(later.begin, ZoneInfo(window.time_zone))
    assert list(Day)[local.weekday()] in window.days
    assert local.hour * 60 + local.minute - window.start in (0, 30, 60)


def test_a_day_that_a_country_skipped() -> None:
    """On a day that no calendar there had nothing opens twice and nothing is lost."""
    apia = window("", "02:00", 1, "Pacific/Apia")  # there was no 2011-12-30
    found = [each for each in openings((apia,), at("2011-12-30 12:00")) if at("2011-12-29 00:00") <= each.begin]
    assert [when(each.begin) for each in found[:3]] == ["2011-12-29 12:00", "2011-12-30 12:00", "2011-12-31 12:00"]

"""What the policy lets happen now: windows, inhibitors, users; unknown means no."""

from __future__ import annotations

import datetime

import pytest

from kupgrade.core.permission import Hindrances, leave, need
from kupgrade.model.policy import Policy
from kupgrade.model.schedule import Automation, Terms, Window
from tests.unit.conftest import a_plan

NOON = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC).timestamp()
OPEN, SHUT = Window(11 * 60, 7200.0), Window(2 * 60, 7200.0)
AUTO, HAND, NOW = Terms(automatic=True), Terms(), Terms(at_once=True)
BUSY = Hindrances(inhibitors=("apt (installing)",))
USED = Hindrances(users=("ann", "bob"))
BLIND = Hindrances(None, None, "busctl failed")


def policy(*windows: Window, with_users: bool = False, respect: bool = True) -> Policy:
    return Policy(windows=windows, respect_inhibitors=respect, automation=Automation(with_users=with_users))


CASES = {
    "no windows, nobody there": (policy(), AUTO, Hindrances(), True, "no windows"),
    "in a window": (policy(OPEN), AUTO, Hindrances(), True, "until 2026-11-21 13:00 UTC"),
    "outside": (policy(SHUT), AUTO, Hindrances(), False, "no window is open; the next one that is long enough opens"),
    "outside, by hand": (policy(SHUT), HAND, Hindrances(), False, "opens 2026-11-22 02:00 UTC"),
    "outside, now": (policy(SHUT), NOW, BUSY, True, "a person said"),
    "held up": (policy(OPEN), AUTO, BUSY, False, "apt (installing)"),
    "held up, by hand": (policy(), HAND, BUSY, False, "apt (installing)"),
    "held up, and nobody cares": (policy(respect=False), AUTO, BUSY, True, ""),
    "users": (policy(), AUTO, USED, False, "ann, bob"),
    "users, by hand": (policy(), HAND, USED, True, ""),
    "users, and they do not mind": (policy(with_users=True), AUTO, USED, True, ""),
    "unknown": (policy(), HAND, BLIND, False, "unknown: busctl failed"),
    "unknown, and nobody cares": (policy(respect=False), HAND, BLIND, True, ""),
    "unknown users": (policy(respect=False), AUTO, BLIND, False, "logged in is unknown"),
}


@pytest.mark.parametrize("name", CASES)
def test_leave(name: str) -> None:
    """Each no has its reason."""
    rules, terms, found, granted, words = CASES[name]
    answer = leave(rules, terms, NOON, 120.0, found)
    assert answer.granted is granted and words in answer.why


@pytest.mark.parametrize(("seconds", "granted"), [(3600.0, True), (3600.1, False), (7200.0, False)])
def test_what_is_needed_has_to_fit(seconds: float, granted: bool) -> None:
    """An hour is left of the window: not a moment more may be needed."""
    answer = leave(policy(OPEN), HAND, NOON, seconds, Hindrances())
    assert answer.granted is granted
    assert granted or (answer.next == NOON + 23 * 3600 and "the window closes in 60 min" in answer.why)


def test_windows_that_never_suffice() -> None:
    """It is told that waiting does not help."""
    answer = leave(policy(OPEN), HAND, NOON, 7201.0, Hindrances())
    assert (answer.granted, answer.next) == (False, None) and "no window is ever that long" in answer.why


def test_what_a_plan_needs() -> None:
    """The longest predicted blackout, and the time until a failed crossing is given up."""
    assert need(a_plan(deadline=90.0)) == 92.5
    assert need(a_plan(budgets=(), deadline=90.0)) == 90.0

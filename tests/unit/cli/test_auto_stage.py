"""auto in the mode `stage`: what is prepared, waits for its window, goes on or is put away."""

from __future__ import annotations

import pytest

from kupgrade.model.record import RecordKind
from kupgrade.model.schedule import Terms

from .automation import NEW, NOON, OPEN, SHUT, STAGED, Auto, staged
from .conftest import facts


def test_stage_tells_how_far_it_goes(auto: Auto) -> None:
    """What is prepared and what is not is said; while it waits nothing is begun again."""
    auto.policy("stage", SHUT)
    auto.host.events = STAGED
    auto.ask(NEW)
    for count in (1, 2, 3):
        attempt, code = auto.look()
        assert (attempt["verdict"], code) == ("staged", 0)
        assert "prepared: prepare-store, not yet: do load-kernel" in attempt["why"]
        assert auto.host.calls.count("start-worker") == 1, count
    assert [each.count for each in auto.attempts] == [3]
    told = auto.host.call("status").output
    assert "wait for a window" in told and "goes on by itself in a window" in told


def test_what_is_staged_goes_on_in_its_window(auto: Auto) -> None:
    """The window opens: a note in the journal, and the worker."""
    staged(auto)
    auto.now = NOON + 15 * 3600
    attempt, code = auto.look()
    assert (attempt["verdict"], code) == ("started", 0) and auto.host.calls.count("start-worker") == 2
    assert auto.terms == Terms(automatic=True)


def last_wish(auto: Auto) -> str:
    records = auto.host.composed.state.read_current()
    return str(records[-1].data.get("reason", "")) if records[-1].kind is RecordKind.UNDO_REQUESTED else ""


def test_what_is_staged_and_stale_is_taken_back(auto: Auto) -> None:
    """A host that has changed is not gone on with: rolled back, and staged anew later."""
    staged(auto)
    auto.now = NOON + 15 * 3600
    auto.host.change(probe=lambda root, policy: facts(digest="e" * 64))
    attempt, code = auto.look()
    assert (attempt["verdict"], code) == ("waits", 75) and "the host has changed" in last_wish(auto)


@pytest.mark.parametrize("how", ["newer", "removed", "mode"])
def test_what_is_staged_and_not_wanted_any_more_is_taken_back(auto: Auto, how: str) -> None:
    """A newer kernel came, or its package went: the prepared one is not crossed to."""
    staged(auto)
    if how == "newer":
        auto.kernels["6.12.60"] = True
        auto.ask("6.12.60")
    elif how == "mode":
        auto.policy("notify", SHUT)
    else:
        auto.host.composed.requests.withdraw(NEW)
    auto.look()
    assert ("6.12.60 is to be taken" in last_wish(auto)) is (how == "newer") and last_wish(auto)


def test_stage_without_windows_is_left_to_a_person(auto: Auto) -> None:
    """Nothing goes on by itself; apply --now does, past the windows, and says so in the journal."""
    staged(auto, "")
    assert "apply --now" in auto.look()[0]["why"] and auto.host.calls.count("start-worker") == 1
    assert auto.host.call("apply", "--no-wait").exit_code == 75
    result = auto.host.call("apply", "--now", "--no-wait")
    assert result.exit_code == 0, result.output
    assert auto.terms == Terms(automatic=True, at_once=True) and auto.host.calls.count("start-worker") == 2


def test_stage_in_an_open_window_goes_through(auto: Auto) -> None:
    """Nothing to wait for: nothing is held."""
    auto.policy("stage", OPEN)
    auto.host.events = ()
    auto.ask(NEW)
    assert auto.look()[0]["verdict"] == "started" and auto.terms == Terms(automatic=True)

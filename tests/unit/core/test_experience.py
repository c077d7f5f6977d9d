"""What the blackouts of earlier upgrades say about the next one."""

from __future__ import annotations

import dataclasses

import pytest

from kupgrade.core.chronicle import HistoryEntry
from kupgrade.core.experience import lateness
from kupgrade.core.predict import budget
from kupgrade.model.plan import EXPERIENCE
from tests.fakes import facts as pf


def upgrade(real: float, predicted: float = 2.0, engine: str = "kexec", outcome: str = "committed") -> HistoryEntry:
    return HistoryEntry("u", outcome, engine=engine, blackout={"demo": real}, predicted={"demo": predicted})


@pytest.mark.parametrize(
    ("history", "times"),
    [
        ((), 1.0),
        ((upgrade(5.0),), 2.5),
        ((upgrade(1.0),), 1.0),
        ((upgrade(5.0, outcome="rolled-back"), upgrade(5.0, engine="spawn")), 1.0),
        ((upgrade(200.0), upgrade(4.0), upgrade(5.0), upgrade(6.0)), 2.5),
        ((upgrade(4.0), upgrade(400.0)), 20.0),
        ((upgrade(4.0, predicted=0.0),), 1.0),
        ((HistoryEntry("u", "damaged"), upgrade(4.0)), 2.0),
    ],
)
def test_a_host_is_as_slow_as_it_was_seen_to_be(history: tuple[HistoryEntry, ...], times: float) -> None:
    """By the median of the last three of that engine that were committed; never faster than its figures say."""
    assert lateness(history, "kexec") == times


def test_what_earlier_ones_took_longer_is_a_term_of_its_own() -> None:
    """Added to all but the hooks, which have their time whatever happens, and left out of what is learned from it."""
    facts = pf.facts(workloads=(pf.seen(),))
    (seen,) = facts.workloads
    before = budget(facts, seen, 60.0, hooks=3.0)
    late = budget(dataclasses.replace(facts, lateness=2.5), seen, 60.0, hooks=3.0)
    (term,) = (each for each in late.terms if each.name == EXPERIENCE)
    assert term.seconds == pytest.approx(1.5 * (before.predicted - 3.0), abs=0.01)
    assert "2.5 times" in term.basis
    assert late.plain == pytest.approx(before.plain) == pytest.approx(before.predicted - 3.0)
    assert not any(each.name == EXPERIENCE for each in before.terms)

"""What the benches make of runs that did not end as they should."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.rehearsal import scenario, virtual_host
from kupgrade.rehearsal.client import Recording
from kupgrade.rehearsal.options import Options
from tests.bench import naive, stores

WELL = Recording(sent=[0.0, 1.0], answered=[0.1, 17.1])
GAP = {"gap_s": 17.0, "sent": 2, "answered": 2, "boots": 2, "problems": [], "log": ""}


@pytest.mark.parametrize(
    ("recording", "boots", "good"),
    [
        (WELL, 2, True),
        (WELL, 1, False),
        (Recording(sent=[0.0, 1.0, 2.0], answered=[0.1, 1.1]), 2, False),
        (Recording(sent=[0.0, 1.0], answered=[0.1, 1.1], resets=1), 2, False),
        (Recording(), 2, False),
    ],
)
def test_a_naive_run_that_lost_its_client_has_no_gap_to_compare(recording: Recording, boots: int, good: bool) -> None:
    """The silence at the end of one that never came back is in no gap between two answers."""
    assert naive.good(recording, boots) is good


@pytest.mark.parametrize(
    ("good", "outcome", "status"), [(True, "committed", 0), (False, "committed", 1), (True, "failed", 1)]
)
def test_a_comparison_of_which_one_half_failed_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], good: bool, outcome: str, status: int
) -> None:
    """No ratio, and an exit status that says so."""
    judged = {"client": {"longest_gap_ms": 8500.0}, "outcome": outcome, "store": "pmem"}
    monkeypatch.setattr("sys.argv", ["naive.py"])
    monkeypatch.setattr(virtual_host, "build", lambda *words: None)
    monkeypatch.setattr(naive, "naive", lambda *words: {**GAP, "good": good})
    monkeypatch.setattr(scenario, "rehearse", lambda *words: SimpleNamespace(judged=judged))
    assert naive.main() == status
    assert ('"ratio": 0.5' in capsys.readouterr().out) is (status == 0)


def test_a_store_is_not_held_against_a_naive_run_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look ten times as fast as it is slow."""
    host: Any = None
    monkeypatch.setattr(virtual_host, "build", lambda *words, **options: host)
    monkeypatch.setattr(stores, "naive", lambda *words: {**GAP, "good": False})
    assert stores.once(Options(), stores.NAIVE)["good"] is False

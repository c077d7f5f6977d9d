"""What the new kernel says of itself in /run."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.machine import standing
from kupgrade.machine.places import Places
from kupgrade.model.handover import Mark


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "run/kupgrade").mkdir(parents=True)
    return Places(tmp_path)


def test_where_the_time_went_is_read_back(places: Places) -> None:
    """In the order in which it was put."""
    marks = (Mark("began", 10.0), Mark("shipped", 10.25))
    standing.put_marks(places, marks)
    assert standing.marks(places) == marks


@pytest.mark.parametrize("text", ["", "{", '[{"what": 1}]', '{"a": 1}'])
def test_without_it_nothing_is_amiss(places: Places, tmp_path: Path, text: str) -> None:
    """Missing, damaged, or nowhere to put it."""
    assert standing.marks(places) == ()
    (places.run / standing.MARKS).write_text(text)
    assert standing.marks(places) == ()
    standing.put_marks(Places(tmp_path / "nowhere"), [Mark("began", 1.0)])

"""The agent takes over: once, with a child that it starts again, and nowhere but among the images."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import BadInputError
from kupgrade.machine import standing
from kupgrade.machine.places import Places
from kupgrade.model.handover import Stage, TakeOver
from kupgrade.standby import takeover
from kupgrade.standby.takeover import MAX_CHILDREN, TAKEN_OVER, Child

ORDER = TakeOver("", "uuid", "ext4", "", "/images", (), 1.8e9, {})
HERE: Any = None


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """No child, none ordered; those that are started only count."""
    made = Places(tmp_path)
    made.run.mkdir(parents=True)
    for name, value in {"pid": 0, "order": None, "started": 0}.items():
        monkeypatch.setattr(Child, name, value)

    def start(_here: object, _order: TakeOver) -> None:
        Child.started += 1
        Child.pid = 100 + Child.started

    monkeypatch.setattr(takeover, "_start", start)
    monkeypatch.setattr(takeover, "_enter_too", lambda: None)
    monkeypatch.setattr(takeover, "Places", lambda: made)
    return made


def test_an_agent_that_finds_the_mark_does_not_take_over(places: Places) -> None:
    """The one before it may have a child at work."""
    (places.run / TAKEN_OVER).touch()
    with pytest.raises(BadInputError, match="takes over already"):
        takeover.take_over(HERE, {})
    assert Child.started == 0


def test_a_killed_child_is_started_again_but_not_for_ever(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed too often, the new kernel gives up; one that ended by itself is left alone."""
    Child.order = ORDER
    takeover._start(HERE, ORDER)
    standing.put(places, Stage.TAKING)
    monkeypatch.setattr(takeover.os, "waitpid", lambda pid, _: (pid, int(signal.SIGKILL)))
    for _ in range(2 * MAX_CHILDREN):
        takeover.tend(HERE)
    assert (Child.started, standing.get(places).stage) == (MAX_CHILDREN, Stage.FAILED)
    Child.started, Child.pid = 1, 101
    monkeypatch.setattr(takeover.os, "waitpid", lambda pid, _: (pid, 1 << 8))
    takeover.tend(HERE)
    assert (Child.started, Child.pid) == (1, 0)


@pytest.mark.parametrize("name", ["../journal", "demo/../../journal", "/etc/shadow", "demo/final/../../../x"])
def test_images_are_written_nowhere_else(tmp_path: Path, name: str) -> None:
    """Whatever the old kernel calls them."""
    with pytest.raises(BadInputError, match="no image"):
        takeover._below(tmp_path, name)
    assert takeover._below(tmp_path, "demo/final/pages-1.img").parent.is_dir()

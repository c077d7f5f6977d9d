"""The cache: complete or absent, once for all who ask at the same time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kupgrade.rehearsal.cache import Cache, key


def fill(text: str = "x") -> Callable[[Path], None]:
    def build(place: Path) -> None:
        (place / "file").write_text(text)

    return build


def test_an_entry_is_built_once(tmp_path: Path) -> None:
    """The second caller gets what the first has built."""
    cache = Cache(tmp_path)
    first = cache.entry("kind", "name", fill("first"))
    assert cache.entry("kind", "name", fill("second")) == first
    assert (first / "file").read_text() == "first"


def test_a_failed_build_leaves_no_entry(tmp_path: Path) -> None:
    """What an exception interrupts is not found later, and the next build starts from nothing."""
    cache = Cache(tmp_path)

    def half(place: Path) -> None:
        (place / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry("kind", "name", half)
    assert not (tmp_path / "kind/name").exists()
    assert sorted(path.name for path in cache.entry("kind", "name", fill()).iterdir()) == ["file"]


def test_what_a_killed_build_left_is_never_used(tmp_path: Path) -> None:
    """Files of a build that never ended do not show up in the next one."""
    left = tmp_path / "kind/.half-name"
    left.mkdir(parents=True)
    (left / "old").touch()
    place = Cache(tmp_path).entry("kind", "name", fill())
    assert [path.name for path in place.iterdir()] == ["file"]
    assert not left.exists()


def test_two_at_once_build_once(tmp_path: Path) -> None:
    """The second of two runs waits for the first instead of building beside it."""
    builds: list[int] = []

    def slow(place: Path) -> None:
        builds.append(1)
        time.sleep(0.1)
        (place / "file").touch()

    callers = [threading.Thread(target=lambda: Cache(tmp_path).entry("kind", "name", slow)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert builds == [1]


def test_pruning_takes_what_is_old_and_not_among_the_newest(tmp_path: Path) -> None:
    """Unused entries go, the newest stay however old they are."""
    cache = Cache(tmp_path)
    for age, name in enumerate(("new", "old", "older")):
        then = time.time() - age * 1000
        os.utime(cache.entry("kind", name, fill()), (then, then))
    assert cache.prune("kind", keep_seconds=500, keep=1) == ["old", "older"]
    assert cache.prune("kind", keep_seconds=-1, keep=1) == []
    assert [path.name for path in (tmp_path / "kind").iterdir() if not path.name.startswith(".")] == ["new"]


def test_a_key_names_content() -> None:
    """Equal parts give equal keys, other parts other keys."""
    assert key("a", ["b"]) == key("a", ["b"]) != key("a", ["c"])


def test_two_that_prune_at_once_do_not_meet(tmp_path: Path) -> None:
    """What the other one has removed meanwhile is gone, and no error."""
    cache = Cache(tmp_path)
    then = time.time() - 1000
    for name in ("one", "two"):
        os.utime(cache.entry("kind", name, fill()), (then, then))
    pruned: list[list[str]] = []
    with cache._locked("kind", "one"):
        other = threading.Thread(target=lambda: pruned.append(cache.prune("kind", keep_seconds=500, keep=0)))
        other.start()
        time.sleep(0.2)  # it waits for the lock
        for file in (tmp_path / "kind/one").iterdir():
            file.unlink()
        (tmp_path / "kind/one").rmdir()
    other.join(10.0)
    assert pruned == [["two"]]


def test_what_somebody_has_taken_into_use_meanwhile_is_not_pruned(tmp_path: Path) -> None:
    """It was old when the list was made, and is not when its turn comes."""
    cache = Cache(tmp_path)
    place = cache.entry("kind", "one", fill())
    os.utime(place, (1000, 1000))
    pruned: list[list[str]] = []
    with cache._locked("kind", "one"):
        other = threading.Thread(target=lambda: pruned.append(cache.prune("kind", keep_seconds=500, keep=0)))
        other.start()
        time.sleep(0.2)
        os.utime(place)
    other.join(10.0)
    assert pruned == [[]] and place.is_dir()

"""The crash tests with two kernels are tested: each planted bug must be noticed somewhere in a reduced matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.crash.spawn_bugs import BUGS, LATE, LOGGED, VERY_LATE, Patch
from tests.crash.spawn_matrix import BEHAVIOURS, GOOD, trace
from tests.fakes.drive_spawn import play_spawn, two_kernels
from tests.fakes.two_kernels_parts import SpawnBehaviour


@pytest.fixture(autouse=True, scope="module")
def _two_kernels() -> Iterator[None]:
    with two_kernels():
        for behaviour in (GOOD, LATE, VERY_LATE, LOGGED):
            trace(behaviour)  # by the good code, before anything is planted
        yield


def reduced(kind: str, behaviour: SpawnBehaviour) -> Iterator[tuple[SpawnBehaviour, dict[int, str]]]:
    """Each host without a fault, then the fault at every tick from the freeze until the system starts."""
    for each in BEHAVIOURS:
        yield each, {}
    labels = trace(behaviour)
    for at in range(labels.index("old: freeze file systems") + 1, labels.index("new: start the system")):
        yield behaviour, {at: kind}


@pytest.mark.parametrize(
    ("plant", "words", "kind", "behaviour"), BUGS, ids=[each[0].__name__.strip("_") for each in BUGS]
)
def test_a_planted_bug_with_two_kernels_is_caught(
    plant: Callable[[Patch], None], words: str, kind: str, behaviour: SpawnBehaviour, monkeypatch: Patch
) -> None:
    """The invariants see each of these mistakes, and name scenario, violation and journal."""
    plant(monkeypatch)
    for host_, faults in reduced(kind, behaviour):
        run = play_spawn(host_, faults)
        if run.problems or run.box.limits:
            assert any(words in problem for problem in (*run.problems, *run.box.limits)), run.report()
            return
    pytest.fail("no scenario of the reduced matrix notices this bug")

"""Every fault point of an upgrade with two kernels at once: singles and ordered pairs, a fixed sample of each.

KUPGRADE_CRASH_SINGLES=N runs one in N of the singles (1: all), KUPGRADE_CRASH_SPAWN_PAIRS=N so many pairs a host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import pytest

from kupgrade.model.record import Outcome, RecordKind
from tests.crash.spawn_matrix import BEHAVIOURS, GOOD, SERVING, pairs, singles, trace
from tests.fakes.drive_spawn import SpawnRun, play_spawn, two_kernels
from tests.fakes.two_kernels import TORN
from tests.fakes.two_kernels_parts import SpawnBehaviour

SINGLES = int(os.environ.get("KUPGRADE_CRASH_SINGLES", "0"))
PAIRS = int(os.environ.get("KUPGRADE_CRASH_SPAWN_PAIRS", "20"))
names = [behaviour.name for behaviour in BEHAVIOURS]


@pytest.fixture(autouse=True, scope="module")
def _two_kernels() -> Iterator[None]:
    with two_kernels():
        yield


def clean(runs: Iterable[SpawnRun]) -> int:
    """Fails with the report of the first run that violates anything, and how many do; the number of runs."""
    bad, count = [], 0
    for run in runs:
        count += 1
        if run.problems:
            bad.append(run)
    if bad:
        pytest.fail(f"{len(bad)} of {count} scenarios violate an invariant; the first:\n{bad[0].report()}", False)
    return count


def at(label: str) -> int:
    """The tick of the good run with this label."""
    return trace(GOOD).index(label) + 1


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=names)
def test_without_a_fault_each_host_ends_as_it_should(behaviour: SpawnBehaviour) -> None:
    """Committed where the new kernel serves, rolled back everywhere else; the machine is never restarted for it."""
    run = play_spawn(behaviour, {})
    clean([run])
    assert run.state is not None
    assert run.state.outcome is (Outcome.COMMITTED if behaviour.name in SERVING else Outcome.ROLLED_BACK), (
        run.state.undo_reason
    )
    assert run.box.boots == 1


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=names)
def test_a_fault_in_either_kernel_loses_nothing(behaviour: SpawnBehaviour) -> None:
    """Kills, panics, hangs, cuts, a damaged channel, the operator's rollback: every invariant holds."""
    one_in = SINGLES or (9 if behaviour is GOOD else 67)
    assert clean(play_spawn(behaviour, faults) for faults in singles(behaviour, one_in)) > 5


def test_a_second_fault_after_the_first_loses_nothing() -> None:
    """Ordered pairs of faults, the second anywhere after the first and in either kernel, keep every invariant."""
    assert clean(play_spawn(each, faults) for each in BEHAVIOURS for faults in pairs(each, PAIRS)) > 200


def test_before_the_flag_the_old_kernel_goes_on_without_a_restart() -> None:
    """Death, hang or silence of the new kernel costs a pause: the frozen originals run again in the same boot."""
    blackout = range(at("new: drive disk"), at("new: declare the commit") + 1, 3)
    runs = [play_spawn(GOOD, {tick: kind}) for tick in blackout for kind in ("panic", "hang", "channel")]
    clean(runs)
    assert {run.state.outcome for run in runs if run.state} == {Outcome.ROLLED_BACK}
    assert not any(run.box.excused for run in runs)


def test_after_the_commit_the_new_kernel_serves_on_when_the_old_one_panics() -> None:
    """Nothing of the workloads is lost, and that the old kernel did not leave stands in the journal."""
    retiring = at("new: retire-old intent")
    for tick in range(at("new: take-disk effect"), retiring, 5):
        run = play_spawn(GOOD, {tick: "old panics"})
        clean([run])
        assert (run.box.boots, run.box.excused) == (1, False)
        assert [r.data["retired"] for r in run.records if "retired" in r.data] == [0]


def test_a_child_that_is_killed_goes_on_although_the_old_kernel_is_dead() -> None:
    """The agent starts it again by itself: between the commit and the host's own init nobody else would."""
    first = at("new: after record: done take-disk")
    for tick in range(first + 1, at("new: start the system"), 4):
        run = play_spawn(GOOD, {first: "old panics", tick: "kill"})
        clean([run])
        assert (run.box.boots, run.box.excused) == (1, False)


def test_a_child_that_is_killed_again_and_again_is_given_up() -> None:
    """Not started a sixth time: the old kernel takes everything back."""
    start = at("new: after record: crossed")
    run = play_spawn(GOOD, {start + n * 4: "kill" for n in range(5)})
    clean([run])
    assert run.state is not None
    assert run.state.outcome is Outcome.ROLLED_BACK
    assert "again and again" in run.report()


def test_a_machine_that_restarts_in_the_blackout_starts_cold_once_and_says_so() -> None:
    """The images were in memory: the state is lost with the power, and what clients saw is on disk."""
    for tick in range(at("old: dump effect"), at("new: declare the commit"), 4):
        run = play_spawn(GOOD, {tick: "cut"})
        clean([run])
        assert set(run.box.cold_starts.values()) == {1}
        assert any(r.kind is RecordKind.FELL_BACK for r in run.records)


def test_a_cut_in_the_middle_of_the_merge_is_a_known_limit() -> None:
    """Without a log the file system may be in between: it is told, not passed over."""
    slow = SpawnBehaviour("the merge takes its time", torn=True)
    middle = trace(slow).index("new: half merged") + 1
    for kind in ("cut", "panic"):
        run = play_spawn(slow, {middle: kind})
        assert run.box.limits == [TORN]
    whole = [play_spawn(slow, {tick: "cut"}) for tick in (middle - 1, middle + 1)]
    clean(whole)
    assert not any(run.box.limits for run in whole)
    clean([play_spawn(slow, {middle: "kill"}), play_spawn(slow, {middle: "old panics"})])


def test_a_cut_in_the_middle_of_a_merge_that_was_logged_costs_nothing() -> None:
    """Whoever mounts the file system replays the log: it is the new state, as after the merge."""
    logged = SpawnBehaviour("what is merged is logged first", torn=True, redo=True)
    middle = trace(logged).index("new: half written home") + 1
    runs = [play_spawn(logged, {tick: kind}) for tick in range(middle - 3, middle + 2) for kind in ("cut", "panic")]
    clean(runs)
    assert not any(run.box.limits for run in runs)


def test_the_claim_is_a_crash_window_of_its_own() -> None:
    """The new kernel works and its journal does not say so yet: killed there, it claims again."""
    window = trace(GOOD).index("new: hand-over effect") + 1
    for kind in ("kill", "cut", "rollback"):
        assert clean([play_spawn(GOOD, {window: kind})]) == 1

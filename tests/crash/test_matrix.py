"""Every fault point of an upgrade, alone and in ordered pairs, on every kind of host and new kernel.

Set KUPGRADE_CRASH_PAIRS=N to run one in N of all ordered pairs (1: all of them, hours); the sample is always the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from kupgrade.model.record import Outcome
from tests.crash.matrix import BEHAVIOURS, GOOD, HELPLESS, KINDS, pairs, singles, trace
from tests.fakes.drive import one_life, play
from tests.fakes.endings import Behaviour
from tests.fakes.judge import Run
from tests.fakes.logs import FileLog
from tests.fakes.machine import Machine

ONE_IN = int(os.environ.get("KUPGRADE_CRASH_PAIRS", "1373"))
names = [behaviour.name for behaviour in BEHAVIOURS]


def clean(runs: Iterable[Run]) -> int:
    """Fails with the report of the first run that violates anything, and how many do; the number of runs."""
    bad: list[Run] = []
    count = 0
    for run in runs:
        count += 1
        if run.problems:
            bad.append(run)
    if bad:
        first = bad[0].report()
        pytest.fail(f"{len(bad)} of {count} scenarios violate an invariant; the first:\n{first}", pytrace=False)
    return count


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=names)
def test_without_a_fault_each_host_ends_as_it_should(behaviour: Behaviour) -> None:
    """Committed where the new kernel serves, rolled back everywhere else."""
    run = play(behaviour, {})
    clean([run])
    serves = behaviour.name in (
        GOOD.name,
        "the boot loader takes the newest",
        "the thaw fails twice",
        "kernel.panic is set by user space",
        "a hook fails after the commit",
    )
    assert run.state is not None
    assert run.state.outcome is (Outcome.COMMITTED if serves else Outcome.ROLLED_BACK)


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=names)
def test_a_fault_at_any_point_loses_nothing(behaviour: Behaviour) -> None:
    """A kill, a power cut or the operator's rollback at every tick keeps every invariant."""
    assert clean(play(behaviour, faults) for faults in singles(behaviour)) > 30


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=names)
def test_a_second_fault_after_the_first_loses_nothing(behaviour: Behaviour) -> None:
    """Ordered pairs of faults, the second anywhere after the first, keep every invariant."""
    assert clean(play(behaviour, faults) for faults in pairs(behaviour, ONE_IN)) > 10


def test_a_hang_while_the_timer_counts_ends_in_the_old_kernel() -> None:
    """A new kernel that stops answering before the commit is reset, and the old release restores."""
    guarded = play(GOOD, {}).machine.guarded
    runs = [play(GOOD, {at: "hang"}) for at in guarded]
    assert clean(runs) > 20
    assert {run.state.outcome for run in runs if run.state} == {Outcome.ROLLED_BACK}


@pytest.mark.parametrize("behaviour", HELPLESS, ids=[b.name for b in HELPLESS])
def test_where_only_a_person_can_decide_hands_are_kept_off(behaviour: Behaviour) -> None:
    """Hands off with a reason, the evidence kept, and nothing done when asked again; the same after a kill."""
    run = play(behaviour, {})
    clean([run])
    assert run.state is not None
    assert run.state.hands_off
    before, length = run.machine.fingerprint(), len(run.log.records)
    one_life(run)
    assert (run.machine.fingerprint(), len(run.log.records)) == (before, length)
    clean(play(behaviour, {at: "kill"}) for at in range(1, run.ticks + 1, 3))


def test_a_cut_before_the_dump_is_whole_starts_the_units_cold() -> None:
    """Without a complete mark nothing is restored: the machine was cut, its memory is lost, the units start."""
    at = trace(GOOD).index("seal") + 1
    run = play(GOOD, {at: "cut"})
    clean([run])
    assert run.machine.cold_starts == 2
    assert clean([play(GOOD, {at + 1: "cut"})]) == 1
    assert play(GOOD, {at + 1: "cut"}).machine.cold_starts == 0


def test_a_machine_without_a_watchdog_survives_kills_at_the_jump() -> None:
    """File systems left frozen by a killed worker are thawed before anything is recorded."""
    bare = Behaviour("no watchdog", watchdog=False)
    jump = trace(bare).index("jump") + 1
    clean(play(bare, {at: "kill"}) for at in range(jump - 6, jump + 1))


@pytest.mark.parametrize("behaviour", BEHAVIOURS[::3], ids=names[::3])
def test_the_real_journal_with_torn_tails_gives_the_same_end(behaviour: Behaviour, in_memory: Path) -> None:
    """On a file, with half-written last lines, each scenario ends as it does in memory."""

    def on_file(faults: dict[int, str]) -> Run:
        path = in_memory / "journal"
        path.unlink(missing_ok=True)
        logs: list[FileLog] = []

        def make(machine: Machine) -> FileLog:
            logs.append(FileLog(machine, path))
            return logs[-1]

        run = play(behaviour, faults, make_log=make)
        logs[0].close()
        return run

    ticks = [at for at, label in enumerate(trace(behaviour), 1) if label.startswith("before record")]
    for at in ticks[::9]:
        for kind in KINDS[:2]:
            real, memory = on_file({at: kind}), play(behaviour, {at: kind})
            clean([real])
            assert [r.kind for r in real.log.records] == [r.kind for r in memory.log.records]


def test_the_claim_is_a_crash_window_of_its_own() -> None:
    """The new kernel runs and its journal does not say so yet: killed or cut there, it claims again or is left."""
    window = trace(GOOD).index("cross effect") + 1
    for kind in ("kill", "cut"):
        assert clean([play(GOOD, {window: kind})]) == 1

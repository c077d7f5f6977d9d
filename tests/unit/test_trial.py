"""A restore for a trial, and memory that is touched, in a kernel before workloads depend on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host.criu import CheckpointError, DumpOptions, RestoreOptions
from kupgrade.standby import touch, trial


class FakeCriu:
    """Dumps by killing; what it "restores" is started anew, and said to be the process that was dumped."""

    def __init__(self, refuses: str = "", runs: bool = True, other: int = 0) -> None:
        self.refuses, self.runs, self.other = refuses, runs, other
        self.dumped = 0
        self.beat: Path | None = None
        self.started: list[subprocess.Popen[bytes]] = []

    def dump(self, options: DumpOptions) -> None:
        assert not options.leave_running
        if self.refuses == "dump":
            raise CheckpointError("criu dump failed", "of no kind that it knows")
        self.dumped, self.beat = options.pid, options.directory.parent / "beat"
        os.killpg(options.pid, signal.SIGKILL)

    def restore(self, options: RestoreOptions) -> int:
        assert not options.leave_stopped
        if self.refuses == "restore":
            raise CheckpointError("criu restore failed", "no such call")
        if self.runs:
            argv = [sys.executable, "-ISc", trial._TREE, str(self.beat)]
            self.started.append(subprocess.Popen(argv, start_new_session=True))
        return self.dumped + self.other


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "trial"


@pytest.fixture
def killed() -> Iterator[list[FakeCriu]]:
    """What was started is gone at the end."""
    fakes: list[FakeCriu] = []
    yield fakes
    for fake in fakes:
        for child in fake.started:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def of_trial() -> list[int]:
    """All processes that are a trial's."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if trial._TREE.encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_a_tree_that_goes_on_is_told_with_its_time(place: Path, killed: list[FakeCriu]) -> None:
    """Its pipe, its connection, its memory and its file work on after the restore; nothing stays behind."""
    fake: Any = FakeCriu()
    killed.append(fake)
    done = trial.run(place, fake)
    assert done.seconds > 0 and not done.unmade
    assert not place.exists()


@pytest.mark.parametrize(
    ("fake", "told"),
    [
        (FakeCriu(refuses="restore"), "no such call"),
        (FakeCriu(runs=False), "does not run as it did"),
        (FakeCriu(runs=False, other=1), "another PID"),
    ],
)
def test_a_kernel_that_does_not_restore_is_refused(fake: Any, told: str, place: Path) -> None:
    """criu says so, the restored processes stand still, or they are others."""
    with pytest.raises(KupgradeError, match=told):
        trial.run(place, fake, patience=0.5 if not fake.runs and not fake.other else trial.PATIENCE)
    assert not place.exists() and not of_trial()


def test_a_dump_that_fails_is_no_word_against_the_kernel(place: Path) -> None:
    """Workloads are dumped by the other kernel: the trial is told not to have been made."""
    fake: Any = FakeCriu(refuses="dump")
    done = trial.run(place, fake)
    assert "of no kind that it knows" in done.unmade
    assert not place.exists() and not of_trial()


def test_what_a_trial_that_was_cut_short_left_is_removed_first(
    tmp_path: Path, place: Path, killed: list[FakeCriu]
) -> None:
    """Its processes are killed; those of a trial elsewhere are not."""
    place.mkdir()
    left = subprocess.Popen([sys.executable, "-ISc", trial._TREE, str(place / "beat")], start_new_session=True)
    fake: Any = FakeCriu()
    killed.append(fake)
    trial.run(place, fake)
    assert left.wait(10) == -signal.SIGKILL
    other = subprocess.Popen([sys.executable, "-ISc", trial._TREE, str(tmp_path / "beat")], start_new_session=True)
    try:
        trial._clear(place)
        time.sleep(0.05)
        assert other.poll() is None
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


@pytest.mark.parametrize(
    ("portions", "patience", "taken"), [(0, 10.0, 0), (0.9, 10.0, 0), (2, 10.0, 2), (2.5, 10.0, 2), (2, 0.0, 0)]
)
def test_memory_is_touched_in_whole_portions_for_a_while(portions: float, patience: float, taken: int) -> None:
    """Never more than was asked for, and not for longer."""
    assert touch.touch(int(portions * touch.PORTION), patience) == taken * touch.PORTION


def test_free_memory_is_given_back(tmp_path: Path) -> None:
    """A child takes it, the first to go should memory get short; this process keeps none, and goes on when it fails."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemFree: {touch.PORTION * 2 >> 10} kB\n")
    touch.free_memory(tmp_path)
    assert (tmp_path / "proc/self/oom_score_adj").read_text() == "1000"
    touch.free_memory(tmp_path / "nowhere")

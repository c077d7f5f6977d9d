"""Which pre-dump rounds a dump may build on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host.criu import DumpOptions
from kupgrade.kernel import cgroup
from kupgrade.machine import copies, dumping
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.places import Places
from kupgrade.machine.rounds import WHOLE, at_once
from kupgrade.model.workload import Store, StoreKind, Workload

WORKLOAD = Workload(name="demo", unit="", cgroup="/demo", pids=(10,), root_pid=10)


@dataclass
class Criu:
    """Writes an image, or is killed before it is through."""

    killed: bool = False
    parents: list[str] = field(default_factory=list)

    def pre_dump(self, options: DumpOptions) -> None:
        self.parents.append(options.parent)
        (options.directory / "pages-1.img").write_bytes(b"secret")
        if self.killed:
            raise KeyboardInterrupt

    dump = pre_dump


@pytest.fixture
def criu() -> Criu:
    return Criu()


@pytest.fixture
def rounds(tmp_path: Path, criu: Criu, monkeypatch: pytest.MonkeyPatch) -> tuple[RealCheckpoints, Store]:
    monkeypatch.setattr(dumping, "journal_streams", lambda _pids: {})
    monkeypatch.setattr(dumping.cgroup_tree, "cells", lambda _cgroup: ())
    monkeypatch.setattr(cgroup, "members", lambda _path: WORKLOAD.pids)
    monkeypatch.setattr(copies, "tree", lambda _workload: WORKLOAD.pids)
    (tmp_path / "images").mkdir(mode=0o700)
    real = RealCheckpoints(Places(tmp_path), cast(Any, None), cast(Any, criu))
    return real, Store(StoreKind.DISK, str(tmp_path / "images"), "", "")


Rounds = tuple[RealCheckpoints, Store]


def test_each_round_builds_on_the_one_before(rounds: Rounds, criu: Criu) -> None:
    """And the dump on the last."""
    real, store = rounds
    for number in (1, 2, 3):
        real.pre_dump(store, [(WORKLOAD, number)])
        assert real.rounds(store, WORKLOAD) == number
    real.dump(store, [WORKLOAD])
    assert criu.parents == ["", "../pre-1", "../pre-2", "../pre-3"]


def test_nothing_builds_on_a_chain_with_a_round_that_was_cut_short(rounds: Rounds, criu: Criu) -> None:
    """It may have reset what counts as changed: the dump is of everything then."""
    real, store = rounds
    real.pre_dump(store, [(WORKLOAD, 1)])
    criu.killed = True
    with pytest.raises(KeyboardInterrupt):
        real.pre_dump(store, [(WORKLOAD, 2)])
    assert real.rounds(store, WORKLOAD) == 0
    criu.killed = False
    real.dump(store, [WORKLOAD])
    assert criu.parents[-1] == ""


def test_a_first_round_makes_an_end_of_all_that_were_there(rounds: Rounds) -> None:
    """Later ones of an earlier chain hold older memory than it does."""
    real, store = rounds
    for number in (1, 2, 3):
        real.pre_dump(store, [(WORKLOAD, number)])
    real.pre_dump(store, [(WORKLOAD, 1)])
    assert real.rounds(store, WORKLOAD) == 1
    assert sorted(path.name for path in Path(store.path, "demo").iterdir()) == ["pre-1"]


def test_a_chain_with_a_gap_is_none(rounds: Rounds) -> None:
    """Nor is an empty one."""
    real, store = rounds
    assert real.rounds(store, WORKLOAD) == 0
    for name in ("pre-1", "pre-3"):
        (Path(store.path) / "demo" / name).mkdir(parents=True)
        (Path(store.path) / "demo" / name / WHOLE).touch()
    assert real.rounds(store, WORKLOAD) == 0


def test_workloads_are_dumped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each meets the others in the middle of its own; the figures keep the order."""
    monkeypatch.setattr("kupgrade.machine.rounds.preload", lambda: None)
    meeting = threading.Barrier(3, timeout=20)

    def work(number: int) -> int:
        meeting.wait()
        return number * 10

    assert at_once(work, [1, 2, 3]) == [10, 20, 30]


def test_a_dump_that_fails_is_told_when_none_goes_on_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes back what was done must not meet criu still at work."""
    monkeypatch.setattr("kupgrade.machine.rounds.preload", lambda: None)
    failed, ended = threading.Event(), []

    def work(number: int) -> int:
        if number == 1:
            failed.set()
            raise KupgradeError("criu dump failed")
        failed.wait(20)
        time.sleep(0.1)
        ended.append(number)
        return 0

    with pytest.raises(KupgradeError, match="dump failed"):
        at_once(work, [1, 2])
    assert ended == [2]

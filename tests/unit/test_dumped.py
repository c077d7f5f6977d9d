"""What a dump tells of a workload, and what has to be there before its sandbox is made again."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import cgroup, namespaces, proc, tcp_repair
from kupgrade.kernel.blockfs import parse_mountinfo
from kupgrade.kernel.namespaces import Held
from kupgrade.machine import copies, dumping, restorer
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.dumping import Meta
from kupgrade.machine.places import Places
from kupgrade.machine.streams import META
from kupgrade.model.workload import Store, StoreKind, Workload

SERVER = Workload(name="db", unit="db.service", cgroup="/db", root_pid=500, pids=(500, 501), sandbox=("mnt",))


@dataclass
class Systemd:
    """Writes down what it starts."""

    started: list[tuple[tuple[str, ...], bool]] = field(default_factory=list)

    def start(self, units: tuple[str, ...], *, now: bool = False, wait: bool = False) -> None:
        assert now
        self.started.append((tuple(units), wait))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Images of a workload that has another process than planned."""
    directory = tmp_path / "images/db/final"
    directory.mkdir(parents=True)
    mounts = (
        Held("/run/user", ("ro",), hosts=False),
        Held("/run", ("ro",), hosts=True),
        Held("/var/lib/db", (), hosts=False),
    )
    meta = Meta({"socket:[7]": 1}, (500, 777), (), mounts, ("tmp.mount",))
    restorer.put(directory / META, meta)
    return Store(StoreKind.DISK, str(tmp_path / "images"))


def test_the_images_tell_which_processes_were_dumped(store: Store, tmp_path: Path) -> None:
    """Not the plan, as long as there are images."""
    assert dumping.as_dumped(store, SERVER).pids == (500, 777)
    assert dumping.pids_in(store) == (500, 777)
    nothing = Store(StoreKind.DISK, str(tmp_path / "nothing"))
    for none in (None, nothing):
        assert dumping.as_dumped(none, SERVER) == SERVER
        assert dumping.pids_in(none) == ()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Workload, Store]]:
    """A workload of two processes, of which the second is stopped, and where its images go."""
    (tmp_path / "store").mkdir(mode=0o700)
    running = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    pids = [each.pid for each in running]
    os.kill(pids[1], signal.SIGSTOP)
    await_state(pids[1], "T")
    path = str(tmp_path / "store")
    yield Workload("two", "", "/two", pids[0], tuple(pids)), Store(StoreKind.DISK, path)
    for each in running:
        each.kill()
        each.wait()


def await_state(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + 10
    while proc.process(pid).state not in wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_somebody_had_stopped_stays_so(
    two: tuple[Workload, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """criu leaves all of them stopped; whoever stopped that one may continue it, nobody else."""
    workload, store = two
    monkeypatch.setattr(dumping, "journal_streams", lambda _pids: {})
    monkeypatch.setattr(dumping.cgroup_tree, "cells", lambda _cgroup: ())
    monkeypatch.setattr(copies, "tree", lambda _workload: workload.pids)
    monkeypatch.setattr(cgroup, "state", lambda _cgroup: cgroup.FreezerState.THAWED)
    criu = SimpleNamespace(dump=lambda _options: None)
    real = RealCheckpoints(Places(tmp_path), cast(Any, None), cast(Any, criu), store)
    real.dump(store, [workload])
    os.kill(workload.root_pid, signal.SIGSTOP)
    await_state(workload.root_pid, "T")
    assert real.running([workload]) is False
    real.thaw_restored([workload])
    await_state(workload.root_pid, "SR")
    assert proc.process(workload.pids[1]).state == "T"
    assert real.running([workload]) is True


@pytest.mark.parametrize(("ended", "runs"), [("child", True), ("root", False)])
def test_a_process_that_ends_at_once_when_it_runs_again_was_let_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str, runs: bool
) -> None:
    """A script's sleep whose time was over; without its main process there is no workload."""
    monkeypatch.setattr(cgroup, "state", lambda _cgroup: cgroup.FreezerState.THAWED)
    with subprocess.Popen(["true"]) as child:
        child.wait()
    there, gone = os.getpid(), child.pid
    workload = Workload("two", "", "/two", gone if ended == "root" else there, (there, gone))
    real = RealCheckpoints(Places(tmp_path), cast(Any, None))
    real.thaw_restored([dataclasses.replace(workload, pids=(gone,))])
    assert real.running([workload]) is runs


def test_images_of_an_older_release_keep_to_the_plan(store: Store) -> None:
    """They hold the journal streams, and no more."""
    (Path(store.path) / "db/final" / META).write_text('{"streams": {"socket:[7]": 1}}')
    assert dumping.as_dumped(store, SERVER) == SERVER
    assert dumping.read_meta(store, SERVER).mounts == ()


def test_what_a_sandbox_is_made_of_is_there_before(store: Store, tmp_path: Path) -> None:
    """Directories in /run that it hides, and the host's file systems for temporary files; nothing on a disk."""
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    systemd = Systemd()
    real = RealCheckpoints(Places(root), cast(Any, systemd))
    for _ in range(2):
        real._make_ready(store, [SERVER])
    assert [str(path.relative_to(root)) for path in sorted(root.rglob("*"))] == ["run", "run/user"]
    assert systemd.started == [(("tmp.mount",), True)] * 2


@pytest.mark.parametrize("strict", [True, False])
def test_a_weaker_sandbox_is_refused_on_the_way_there_and_told_on_the_way_back(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    strict: bool,
) -> None:
    """In the old kernel there is nothing to fall back to any more."""
    now = parse_mountinfo("125 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n")
    monkeypatch.setattr(namespaces, "mounts", lambda _pid: now)
    held = (Held("/", ("ro",), hosts=True),)
    request = restorer.Request("", {}, "", "/db", True, 1.0, sandbox=("mnt",), mounts=held, as_strict=strict)
    if strict:
        with pytest.raises(KupgradeError, match="less that holds it in: / ro"):
            restorer._sandboxed(request, 12)
        return
    assert restorer._sandboxed(request, 12) == {}
    assert "weaker than it was: / ro" in capsys.readouterr().err


def test_connections_that_cannot_be_looked_at_keep_no_one_frozen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told; those of the other workloads are put right all the same."""
    ended: list[tuple[int, ...]] = []

    def end(pids: tuple[int, ...], _libc: object) -> int:
        ended.append(pids)
        if pids == (500,):
            raise KernelError("pidfd_getfd", "500", errno.EPERM)
        return 1

    monkeypatch.setattr(tcp_repair, "end", end)
    monkeypatch.setattr(cgroup, "exists", lambda path: path != "/gone")
    monkeypatch.setattr(cgroup, "members", lambda path: {"/db": (500,), "/web": (600,)}[path])
    others = (dataclasses.replace(SERVER, name=name, cgroup=f"/{name}") for name in ("gone", "web"))
    RealCheckpoints(Places(tmp_path), cast(Any, Systemd())).let_go((SERVER, *others))
    assert ended == [(500,), (), (600,)]
    assert "connections of db may be cut off" in capsys.readouterr().err

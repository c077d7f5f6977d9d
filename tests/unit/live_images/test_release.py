"""Workloads that were held are let go, by whoever comes after."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KernelError
from kupgrade.host import nft
from kupgrade.kernel import cgroup, process, tcp_repair
from kupgrade.live_images import release
from kupgrade.live_images.release import Release
from kupgrade.machine import sandbox
from kupgrade.machine.places import Places
from kupgrade.machine.units import RealUnits
from kupgrade.model.live_images import Hold
from kupgrade.model.workload import Watched, Workload

WEB = Workload("web", "web.service", "/web", 700, (700,))
DB = Workload("db", "db.service", "/db", 800, (800,))
HOLD = Hold((WEB, DB), (Watched("db.service", 9.0),), locked=True)


@dataclass
class Machine:
    """What is done on it; one part of it may fail."""

    places: Places
    done: list[str] = field(default_factory=list)
    fails: str = ""
    frozen: bool = True

    def note(self, word: str) -> None:
        self.done.append(word)
        if word == self.fails:
            raise KernelError("write", word, 5)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(Places(tmp_path))
    states = {True: cgroup.FreezerState.FROZEN, False: cgroup.FreezerState.THAWED}
    monkeypatch.setattr(cgroup, "members", lambda path: (1, 2))
    monkeypatch.setattr(cgroup, "exists", lambda path: True)
    monkeypatch.setattr(cgroup, "state", lambda path: states[found.frozen])
    monkeypatch.setattr(cgroup, "thaw", lambda path, timeout: found.note(f"thaw {path}"))
    monkeypatch.setattr(tcp_repair, "end", lambda pids, libc: found.note("sockets"))
    monkeypatch.setattr(nft, "unlock", lambda: found.note("unlock"))
    monkeypatch.setattr(RealUnits, "watch", lambda self, w, seconds: found.note(f"watch {w.name} {seconds:g}"))
    monkeypatch.setattr(release, "remove_links", lambda workload: found.note(f"links {workload.name}"))
    release.write(found.places, HOLD)
    return found


EVERYTHING = ["sockets", "thaw /web", "sockets", "thaw /db", "unlock", "watch db 9", "links web", "links db"]


def test_everything_is_taken_back_and_forgotten(machine: Machine) -> None:
    """Sockets before the thaw: a process that runs on one in repair mode gets an error."""
    Release(machine.places).all_of(HOLD, sound=False)
    assert machine.done == EVERYTHING
    assert release.read(machine.places) is None


@pytest.mark.parametrize("fails", ["sockets", "thaw /web", "unlock", "watch db 9", "links web"])
def test_one_part_that_fails_keeps_no_other(machine: Machine, fails: str) -> None:
    """It is told, and the note stays for whoever comes next."""
    machine.fails = fails
    with pytest.raises(KernelError):
        Release(machine.places).all_of(HOLD, sound=False)
    assert machine.done == EVERYTHING
    assert release.read(machine.places) == HOLD


def test_after_a_dump_that_ended_well_they_wait_for_nothing(machine: Machine) -> None:
    """criu has said that it is done: no look at each socket lengthens the pause."""
    Release(machine.places).run_on(HOLD, sound=True)
    assert machine.done == ["thaw /web", "thaw /db"]


def test_what_was_not_held_is_left_alone(machine: Machine) -> None:
    """Killed before the freeze and without a lock."""
    machine.frozen = False
    Release(machine.places).all_of(Hold((WEB,)), sound=False)
    assert machine.done == ["sockets", "links web"]


def test_the_command_does_it_and_says_what_it_could_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As systemd calls it when the dumping service has ended, however it ended; nothing to do without a note."""
    monkeypatch.setattr(release, "Places", lambda: machine.places)
    machine.fails = "unlock"
    assert release.main() == 1
    assert "may still be held" in capsys.readouterr().err
    machine.fails = ""
    assert (release.main(), release.main()) == (0, 0)
    assert machine.done == EVERYTHING * 2


@pytest.fixture
def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process has a file open whose own name is gone; criu has given it another, beside one of somebody else's."""
    (tmp_path / "data").write_text("x")
    (tmp_path / "link_remap.7").hardlink_to(tmp_path / "data")
    (tmp_path / "link_remap.8").write_text("another file")
    with (tmp_path / "data").open() as file:
        (tmp_path / "data").unlink()
        fds = process.fds(os.getpid())
        assert any(fd.target == f"{tmp_path}/data (deleted)" for fd in fds), file
        monkeypatch.setattr(cgroup, "members", lambda path: (os.getpid(),))
        monkeypatch.setattr(sandbox, "view", lambda pid: Path("/"))
        yield tmp_path


def test_names_that_criu_gave_to_files_are_removed(linked: Path) -> None:
    """Those of the very file, and no other of the same kind."""
    release.remove_links(WEB)
    assert [path.name for path in linked.iterdir()] == ["link_remap.8"]


def test_mapped_files_count_and_ended_processes_do_not(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that was replaced is mapped, not open."""
    inode = (linked / "link_remap.7").stat().st_ino
    mapping = SimpleNamespace(path=f"{linked}/data", inode=inode, deleted=True)
    monkeypatch.setattr(process, "fds", lambda pid: ())
    monkeypatch.setattr(process, "mappings", lambda pid: [mapping])
    release.remove_links(WEB)
    assert not (linked / "link_remap.7").exists()

    def gone(_pid: int) -> Any:
        raise KernelError("readdir", "", 2)

    monkeypatch.setattr(process, "fds", gone)
    release.remove_links(WEB)


def test_a_criu_that_goes_on_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its master was killed; it ends by itself. One that does not end holds nobody for ever; we are none of them."""
    left = [(7, os.getpid()), (7,), (os.getpid(),)]
    monkeypatch.setattr(cgroup, "members", lambda path: left.pop(0))
    release.await_dumpers(Hold((WEB,), dumpers="/dump"), 10.0)
    assert left == []
    monkeypatch.setattr(cgroup, "members", lambda path: (7,))
    release.await_dumpers(Hold((WEB,), dumpers="/dump"), 0.05)
    release.await_dumpers(Hold((WEB,)), 10.0)
    monkeypatch.setattr(cgroup, "exists", lambda path: False)
    release.await_dumpers(Hold((WEB,), dumpers="/dump"), 10.0)
    assert machine.done == []

"""The criu processes that wait for requests; in the place of criu a program that answers with its PID."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.host import criu, criu_child
from kupgrade.host.criu import CheckpointError, Criu, DumpOptions, Inside, RestoreOptions

ANSWERS = """
import os, socket, sys
line = socket.socket(fileno=int(sys.argv[2]))
asked = line.recv(100)
if asked:
    line.send(f"{os.getpid()} {os.path.lexists('/proc/self/fd/' + asked.decode())}".encode())
"""


class Client:
    """As pycriu's: everything but the line to the child is left out."""

    def __init__(self) -> None:
        self.opts = SimpleNamespace(inherit_fd=SimpleNamespace(add=lambda **_: None), external=[])
        self.fd = -1

    def use_fd(self, fd: int) -> None:
        self.fd = fd

    def ask(self, what: str) -> str:
        os.write(self.fd, what.encode())
        return os.read(self.fd, 100).decode()

    def dump(self) -> None:
        cgroups.append(getattr(self.opts, "manage_cgroups_mode", None))
        asked.append(self.ask("0"))

    def restore(self) -> Any:
        asked.append(self.ask(self.opts_inherited))
        return SimpleNamespace(pid=1)

    opts_inherited = "0"


asked: list[str] = []
cgroups: list[int | None] = []


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    asked.clear()
    cgroups.clear()
    monkeypatch.setattr(criu, "_import", lambda: SimpleNamespace(criu=Client, rpc=SimpleNamespace(SKIP=1, IGNORE=7)))
    path = tmp_path / "criu"
    path.write_text(f"#!{sys.executable}\n{ANSWERS}")
    path.chmod(0o700)
    return str(path)


def waiting(of: Criu) -> list[int]:
    return [each._process.pid for each in of._waiting]


def test_a_dump_is_asked_of_one_that_waits(binary: str, tmp_path: Path) -> None:
    """Started before; the next dump, for which none waits any more, has one of its own. None is left behind."""
    asker = Criu(binary)
    asker.prime(1)
    (ahead,) = waiting(asker)
    options = DumpOptions(1, tmp_path)
    asker.dump(options)
    asker.dump(options)
    pids = [int(each.split()[0]) for each in asked]
    assert pids[0] == ahead
    assert pids[1] != ahead
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_inside_of_a_sandbox_criu_is_run_by_a_descriptor(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file may lie where nothing can be executed; those that wait are outside, and are not asked."""
    entered = tmp_path / "nsenter"
    entered.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\nshift 2\nexec {sys.executable} "$@"\n')
    entered.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asker = Criu(binary)
    asker.prime(1)
    (ahead,) = waiting(asker)
    asker.dump(DumpOptions(1, tmp_path, inside=Inside(77, ("mnt",))))
    assert int(asked[0].split()[0]) != ahead
    words = (tmp_path / "words").read_text().split()
    assert words[:2] == ["--mount=/proc/77/ns/mnt", "--"]
    assert words[2].startswith("/proc/self/fd/") and words[3] == "swrk"
    asker.dump(DumpOptions(1, tmp_path))
    assert cgroups == [7, None]  # whose hierarchy cannot be mounted inside


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        (Inside(7, ("mnt", "uts")), "nsenter --mount=/proc/7/ns/mnt --uts=/proc/7/ns/uts --"),
        (Inside(7, (), own_ipc=True), "unshare --ipc --"),
        (Inside(7, ("mnt",), own_ipc=True), "unshare --ipc -- nsenter --mount=/proc/7/ns/mnt --"),
    ],
)
def test_namespaces_are_entered_by_words_before_criu(inside: Inside, words: str) -> None:
    """The IPC namespace first: the program that makes it may not be executable behind."""
    assert inside.words() == words.split()


def test_those_that_nobody_asks_end(binary: str) -> None:
    """When they are dismissed, or when others take their place."""
    asker = Criu(binary)
    asker.prime(2)
    first = waiting(asker)
    asker.prime(1)
    second = waiting(asker)
    asker.dismiss()
    assert not any(Path(f"/proc/{pid}").exists() for pid in (*first, *second))


@pytest.mark.parametrize("primed", [0, 1])
def test_a_restore_hands_its_descriptors_down(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, primed: int
) -> None:
    """By the same numbers; one that was started before, and does not have them, is not asked."""
    reader, writer = os.pipe()
    monkeypatch.setattr(Client, "opts_inherited", str(writer))
    asker = Criu(binary)
    asker.prime(primed)
    assert asker.restore(RestoreOptions(tmp_path, {"socket:[1]": writer}, tmp_path)) == 1
    assert asked[0].split()[1] == "True"
    asker.dismiss()
    os.close(reader)
    os.close(writer)


def test_criu_that_is_not_there_is_named(binary: str, tmp_path: Path) -> None:
    """As what failed, not as a missing file of Python's."""
    Path(binary).unlink()
    with pytest.raises(CheckpointError, match="cannot be started"):
        Criu(binary).dump(DumpOptions(1, tmp_path))


def test_one_that_ends_without_an_answer_is_an_error(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it has ended when that is told: what is taken back meets no criu at work."""

    def dump(self: Client) -> None:
        self.ask("0")
        raise OSError("no answer")

    monkeypatch.setattr(Client, "dump", dump)
    asker = Criu(binary)
    asker.prime(1)
    (ahead,) = waiting(asker)
    with pytest.raises(CheckpointError, match="dump failed"):
        asker.dump(DumpOptions(1, tmp_path))
    assert not Path(f"/proc/{ahead}").exists()


STANDS = """
import os, socket, sys, time
line = socket.socket(fileno=int(sys.argv[2]))
if line.recv(100):
    os.fork()
    os.kill(os.getpid(), 19) if "{how}" == "stops" else time.sleep(600)
"""
WORKS = """
import os, socket, sys, time
line = socket.socket(fileno=int(sys.argv[2]))
asked = line.recv(100)
worker = os.fork()
if worker == 0:
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        pass
    os._exit(0)
os.waitpid(worker, 0)
line.send(b"1 done")
"""


def descendants(text: str) -> list[int]:
    """Processes whose arguments contain it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text in entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(entry.parent.name))
    return found


@pytest.mark.parametrize("how", ["sleeps", "stops"])
@pytest.mark.parametrize("primed", [0, 1])
def test_a_criu_that_stands_still_is_killed(
    how: str, primed: int, binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it forked; else the workloads would stand still with it for ever."""
    monkeypatch.setattr(criu_child, "STILL", 8)
    monkeypatch.setattr(criu_child, "_POLL", 0.05)
    Path(binary).write_text(f"#!{sys.executable}\n{STANDS.replace('{how}', how)}")
    asker = Criu(binary)
    asker.prime(primed)
    with pytest.raises(CheckpointError, match="stood still"):
        asker.dump(DumpOptions(1, tmp_path))
    deadline = time.monotonic() + 10.0
    while descendants(binary) and time.monotonic() < deadline:
        time.sleep(0.01)  # a signal is on its way
    assert not descendants(binary)


@pytest.mark.parametrize("pace", ["        pass", "        time.sleep(0.1)"], ids=["child-works", "slowed-down"])
def test_a_criu_that_goes_on_does_not_stand_still(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: str
) -> None:
    """A pre-dump is made by a child; one that writes to slow storage sleeps most of the time."""
    monkeypatch.setattr(criu_child, "STILL", 14)
    monkeypatch.setattr(criu_child, "_POLL", 0.05)
    assert "        pass" in WORKS
    Path(binary).write_text(f"#!{sys.executable}\n{WORKS.replace('        pass', pace)}")
    Criu(binary).dump(DumpOptions(1, tmp_path))
    assert asked == ["1 done"]


def test_one_that_only_waits_to_be_asked_does_not_stand_still(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started ahead of time, and may wait for minutes."""
    monkeypatch.setattr(criu_child, "STILL", 5)
    monkeypatch.setattr(criu_child, "_POLL", 0.02)
    asker = Criu(binary)
    asker.prime(1)
    time.sleep(0.4)
    monkeypatch.setattr(criu_child, "STILL", 1000)
    asker.dump(DumpOptions(1, tmp_path))
    assert len(asked) == 1

"""Restorers that get ready beside the agent of a boot."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kupgrade import boot_agent, resume
from kupgrade.host import criu
from kupgrade.machine import nursery, restorer
from kupgrade.machine.places import Places


@pytest.fixture
def born(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where each restorer writes what it is; its criu is a script that says that it was asked."""
    program = tmp_path / "bin/criu"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $* > {tmp_path}/criu\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")

    def serve(name: str, token: str, deadline: float, parent: int) -> int:
        fds = sorted(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists())
        here = {
            "words": [name, token, round(deadline - time.monotonic())],
            "parent": parent == os.getppid(),
            "leads": os.getsid(0) == os.getpid(),
            "told": "NOTIFY_SOCKET" in os.environ,
            "probed": (tmp_path / "criu").exists(),
            "open": [fd for fd in fds if fd > 2],
        }
        (tmp_path / f"{name}.new").write_text(json.dumps(here))
        (tmp_path / f"{name}.new").rename(tmp_path / name)
        while os.getppid() == parent:
            time.sleep(0.01)
        (tmp_path / f"{name}-gave-up").touch()
        return 0

    monkeypatch.setattr(restorer, "serve", serve)
    monkeypatch.setattr(criu, "preload", lambda: None)
    yield tmp_path
    nursery.end()


def await_(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_restorer_is_a_fork_that_has_nothing_of_the_agents(born: Path) -> None:
    """Neither its lock nor its way to tell systemd; criu was asked before the first one is there."""
    with (born / "lock").open("w"), socket.socket():
        nursery.begin()
        for name in ("db", "web"):
            assert nursery.ask(name, "0badcafe", 60.0)
        for name in ("db", "web"):
            await_((born / name).exists)
            found = json.loads((born / name).read_text())
            assert found.pop("words") == [name, "0badcafe", 60]
            assert found == {"parent": True, "leads": True, "told": False, "probed": True, "open": []}
    assert (born / "criu").read_text() == "check\n"


def test_what_was_not_asked_to_restore_anything_ends_with_the_agent(born: Path) -> None:
    """Its end of the socket is closed by the kernel, however it ends."""
    nursery.begin()
    nursery.ask("db", "0badcafe", 60.0)
    await_((born / "db").exists)
    nursery.end()
    await_((born / "db-gave-up").exists)
    assert not nursery.ask("db", "0badcafe", 60.0)


def test_without_a_nursery_restorers_are_started_one_by_one(born: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None was made, none could be made, or it has died: in a boot nothing is given up for that."""
    started: list[str] = []
    monkeypatch.setattr(restorer.subprocess, "Popen", lambda argv, **_: started.append(argv[4]))
    restorer.spawn(Places(born), "first", 60.0)

    def fork() -> int:
        raise BlockingIOError(11, "no PID")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", fork)
        nursery.begin()
    restorer.spawn(Places(born), "second", 60.0)
    monkeypatch.setattr(nursery, "_serve", lambda *_: None)
    nursery.begin()
    await_(lambda: not nursery.ask("nobody", "0", 1.0))
    restorer.spawn(Places(born), "third", 60.0)
    assert started == ["first", "second", "third"]


def test_the_nursery_is_there_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent of a boot is resume with a nursery."""
    order: list[object] = []
    monkeypatch.setattr(nursery, "begin", lambda: order.append("nursery"))
    monkeypatch.setattr(resume, "main", lambda argv: order.append(argv) or 5)
    assert boot_agent.main(["--early"]) == 5
    assert order == ["nursery", ["--early"]]

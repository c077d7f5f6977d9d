"""Restorers of an attempt that was given up, or whose agent was killed: they restore nothing any more."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from kupgrade.host.criu import Criu
from kupgrade.kernel import cgroup
from kupgrade.machine import restorer
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.places import Places
from kupgrade.model.workload import Workload

WORKLOAD = Workload(name="db", unit="", cgroup="/db", root_pid=4_000_000, pids=(4_000_000,))
TOKEN = "0123abcd"


class Lab:
    """A restorer in a process of its own, whose criu takes as long as it is let."""

    def __init__(self, folder: Path) -> None:
        self.places = Places(folder)
        self.places.restorers.mkdir(parents=True)
        self.images = folder / "images"
        self.images.mkdir()
        self.real = RealCheckpoints(self.places, cast(Any, None))
        self.pid = 0

    @property
    def request(self) -> Path:
        return restorer.request_path(self.places, "db", TOKEN)

    def ask(self) -> None:
        wanted = restorer.Request(str(self.images), {}, str(self.places.run / "db.pid"), "/db", False, 60.0)
        restorer.put(self.request, wanted)

    def start(self) -> None:
        agent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(restorer.main(["db", TOKEN, "60", str(agent)]))

    def began(self) -> bool:
        return (self.images / "criu").exists()

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(tmp_path)

    def restore(_self: Criu, options: Any) -> int:
        child = os.fork()
        if child == 0:
            signal.pause()
        (options.directory / "criu.new").write_text(str(child))
        (options.directory / "criu.new").rename(options.directory / "criu")
        signal.pause()
        return WORKLOAD.root_pid

    monkeypatch.setattr(restorer, "Places", lambda: made.places)
    monkeypatch.setattr(Criu, "check", lambda _self: None)
    monkeypatch.setattr(Criu, "restore", restore)
    monkeypatch.setattr(cgroup, "enter", lambda _path: None)
    yield made
    with contextlib.suppress(ProcessLookupError, OSError, ValueError):
        os.kill(int((made.images / "criu").read_text()), signal.SIGKILL)
    if made.pid:
        os.kill(made.pid, signal.SIGKILL)
        os.waitpid(made.pid, 0)


def await_(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_whoever_still_restores_a_workload_ends_with_its_copies(lab: Lab) -> None:
    """Also what it forked, criu: else there would be a copy after all have been ended."""
    lab.ask()
    lab.start()
    await_(lab.began)
    lab.real.kill([WORKLOAD])
    await_(lab.ended)
    child = Path("/proc") / (lab.images / "criu").read_text()
    await_(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text())


def test_a_request_that_nobody_took_yet_is_taken_by_nobody(lab: Lab) -> None:
    """Its restorer still imports."""
    lab.ask()
    lab.real.kill([WORKLOAD])
    lab.start()
    time.sleep(0.2)
    assert not lab.began()


def test_a_restorer_without_its_agent_waits_no_longer(lab: Lab) -> None:
    """It is in the cgroup of the agent's unit: the next agent waits there until nobody is left, and not for ever."""
    reader, writer = os.pipe()
    agent = os.fork()
    if agent == 0:
        lab.start()
        os._exit(0)
    os.close(writer)
    os.waitpid(agent, 0)
    with os.fdopen(reader, "rb") as line:  # its end comes when nobody is left who has the other one
        poll = select.poll()
        poll.register(line, 0)
        assert poll.poll(10_000), "it still waits for a request that nobody will put"


def test_while_somebody_restores_a_workload_it_is_not_restored(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes are there from the beginning, and empty."""
    monkeypatch.setattr("kupgrade.machine.copies.belongs", lambda _pid, _workload: True)
    assert lab.real.restored([WORKLOAD]) is True
    lab.ask()
    lab.start()
    await_(lab.began)
    assert lab.real.restored([WORKLOAD]) is None


def test_whatever_goes_wrong_is_answered(lab: Lab) -> None:
    """Whoever waits for the answer would do so until its deadline, in the blackout."""
    (lab.images / "volatile.json").write_text("[")
    lab.ask()
    lab.start()
    await_(lab.ended)
    assert "JSONDecodeError" in restorer.answer_path(lab.places, "db").read_text()

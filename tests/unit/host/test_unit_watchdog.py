"""What systemd is told of a unit's watchdog, by a real socket, and what it says of it."""

from __future__ import annotations

import array
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host import journal_push, unit_watchdog
from kupgrade.host.systemd import Systemd, dropin_text, unit_of
from kupgrade.machine.places import Places
from kupgrade.machine.units import RealUnits
from kupgrade.model.workload import Watched, Workload

DEMO = Workload("demo", "demo.service", "/demo", 500, (500,))


@dataclass
class Manager:
    """PID 1 as far as its socket goes: whose message it was, and what it said; closes what comes with a barrier."""

    listener: socket.socket
    deaf: bool = False
    heard: list[tuple[int, str]] = field(default_factory=list)

    def serve(self) -> None:
        while True:
            room = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * 8)
            text, ancillary, _flags, _address = self.listener.recvmsg(4096, room)
            if text == b"end":
                return
            fds, sender = array.array("i"), 0
            for _level, kind, data in ancillary:
                if kind == socket.SCM_RIGHTS:
                    fds.frombytes(data[: len(data) - len(data) % 4])
                else:
                    sender = struct.unpack("iII", data)[0]
            self.heard.append((sender, text.decode()))
            if not self.deaf:
                for fd in fds:
                    os.close(fd)


@pytest.fixture
def manager() -> Iterator[tuple[Manager, Path]]:
    """One that listens below a root of its own; the path of a socket must be short."""
    root = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    path = root / unit_watchdog.NOTIFY
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        made = Manager(listener)
        thread = threading.Thread(target=made.serve)
        thread.start()
        yield made, root
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", str(path))
        thread.join()
    subprocess.run(["rm", "-r", str(root)], check=True)


def test_the_time_out_is_set_in_the_name_of_the_main_process(manager: tuple[Manager, Path]) -> None:
    """By whom systemd takes it, in microseconds; it comes back when that was taken."""
    if os.geteuid():
        pytest.skip("only root may speak for another process")
    made, root = manager
    with subprocess.Popen(["sleep", "60"]) as other:
        for seconds in (0.0, 2.5):
            unit_watchdog.set_timeout(other.pid, seconds, root)
        other.kill()
    told = [text for sender, text in made.heard if sender == other.pid]
    assert told == ["WATCHDOG_USEC=0", "BARRIER=1", "WATCHDOG_USEC=2500000", "BARRIER=1"]


def test_a_manager_that_does_not_listen_is_an_error(
    manager: tuple[Manager, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None there, or one that does not answer: a frozen service would be killed."""
    made, root = manager
    made.deaf = True
    monkeypatch.setattr(journal_push, "TIMEOUT", 0.05)
    for place in (tmp_path, root):
        with pytest.raises(KupgradeError, match="watchdog"):
            unit_watchdog.set_timeout(os.getpid(), 0.0, place)


@pytest.mark.parametrize(
    ("shown", "seconds"),
    [("0", 0.0), ("infinity", 0.0), ("30s", 30.0), ("1min 30s", 90.0), ("500ms", 0.5), ("1month 2d", 2802600.0)],
)
def test_the_time_out_is_read_as_systemd_shows_it(shown: str, seconds: float) -> None:
    """Time spans are for people; none and for ever are the same to us."""
    assert unit_of("demo.service", {"WatchdogUSec": shown}).watchdog == seconds


def test_a_held_unit_is_not_watched() -> None:
    """What it is started by stands still until the commit."""
    assert "WatchdogSec=0" in dropin_text("x", ("/bin/sh",), "/run/x.pid", 60).splitlines()


def shown(monkeypatch: pytest.MonkeyPatch, **values: str) -> list[tuple[int, float]]:
    """What is set while systemd says this of the unit."""
    known = {"LoadState": "loaded", "ActiveState": "active", "MainPID": "500", "WatchdogUSec": "30s", **values}
    monkeypatch.setattr(Systemd, "show", lambda _self, unit: unit_of(unit, known))
    told: list[tuple[int, float]] = []
    monkeypatch.setattr(unit_watchdog, "set_timeout", lambda pid, seconds, _root: told.append((pid, seconds)))
    return told


def test_only_who_runs_is_watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the main process that systemd knows; a unit that has ended meanwhile needs nobody, and is no error."""
    units = RealUnits(Places(tmp_path), Systemd(tmp_path))
    told = shown(monkeypatch)
    assert units.watched([DEMO, Workload("tree", "", "/tree", 700, (700,))]) == (Watched("demo.service", 30.0),)
    units.watch(DEMO, 7.0)
    assert told == [(500, 7.0)]
    told = shown(monkeypatch, ActiveState="failed", MainPID="0")
    assert units.watched([DEMO]) == ()
    units.watch(DEMO, 7.0)
    assert told == []

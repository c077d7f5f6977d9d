"""What the verbs stand on: who holds the journal, how the worker is started."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from kupgrade import worker
from kupgrade.kernel.locks import holder
from kupgrade.model.record import RecordKind

BEGUN = (RecordKind.STARTED, 0, {})
DONE = (RecordKind.DONE, 0, {"seconds": 0.5})


def test_the_holder_of_a_lock_is_found(tmp_path: Path) -> None:
    """The PID in /proc/locks that holds the file, without taking part in the lock."""
    path = tmp_path / "journal"
    path.touch()
    (tmp_path / "proc").mkdir()
    inode = path.stat().st_ino
    text = f"1: POSIX  ADVISORY  WRITE 1 fe:01:{inode} 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 fe:01:{inode} 0 EOF\n"
    (tmp_path / "proc/locks").write_text(text)
    assert holder(path, tmp_path) == 4711
    (tmp_path / "proc/locks").write_text(text.replace("FLOCK", "-> FLOCK"))
    assert holder(path, tmp_path) is None
    assert holder(tmp_path / "none", tmp_path) is None


def test_the_holder_of_a_real_lock_is_found(tmp_path: Path) -> None:
    """The kernel's own list is understood."""
    path = tmp_path / "journal"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if str(path.stat().st_ino) not in Path("/proc/locks").read_text():
            pytest.skip("this kernel hides locks")
        assert holder(path) == os.getpid()
    assert holder(path) is None


def test_without_systemd_no_worker_starts(tmp_path: Path) -> None:
    """sd_booted(3) says no: the caller must run the loop itself."""
    assert worker.start(tmp_path) is False


def test_the_worker_is_started_by_systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With systemd the unit is started without waiting for it."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/systemctl"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert worker.start(tmp_path) is True
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "start --no-block kupgrade-apply.service"


def test_places_agree() -> None:
    """The file through which the worker is asked to roll back is the one its loop reads."""
    from kupgrade.machine.places import Places

    assert Places(Path("/")).rollback_request == Path("/") / worker.REQUEST

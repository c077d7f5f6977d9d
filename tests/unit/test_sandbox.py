"""The start process of a held, sandboxed unit, and what was opened for a service before its mounts were made."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import cgroup, proc
from kupgrade.machine import sandbox
from kupgrade.machine.sandbox import ForeignFile
from kupgrade.model.workload import Workload

GATE = Path("/run/kupgrade/restore/demo.gate")


def workload(**changes: object) -> Workload:
    base = {"name": "demo", "unit": "demo.service", "cgroup": "/demo", "root_pid": 500, "pids": (500,)}
    return Workload(**{**base, **changes})  # type: ignore[arg-type]


def test_the_start_process_is_known_by_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd's own child, which makes the sandbox first, is another program; processes end meanwhile."""
    lines = {10: ("/usr/lib/systemd/systemd-executor", "--deserialize", "7"), 12: ("/bin/sh", "-c", f"read < {GATE}")}
    monkeypatch.setattr(cgroup, "members", lambda _path: (9, 10, 12))

    def arguments(pid: int) -> tuple[str, ...]:
        if pid not in lines:
            raise KernelError("read", f"/proc/{pid}", 2)
        return lines[pid]

    monkeypatch.setattr(proc, "arguments", arguments)
    assert sandbox.starter("/demo", GATE) == 12
    del lines[12]
    assert sandbox.starter("/demo", GATE) == 0
    assert sandbox.await_starter("/demo", GATE, time.monotonic() + 0.03) == 0


def test_files_are_opened_again_as_they_were(tmp_path: Path) -> None:
    """For appending, at their place; a device has none."""
    log = tmp_path / "log"
    log.write_bytes(b"12345")
    files = (
        ForeignFile("file[1:2]", "/dev/null", os.O_RDWR, 0),
        ForeignFile("file[1:3]", str(log), os.O_WRONLY | os.O_APPEND, 3),
    )
    opened = sandbox.reopen(files)
    try:
        assert os.lseek(opened["file[1:3]"], 0, os.SEEK_CUR) == 3
        os.write(opened["file[1:3]"], b"6")
        assert os.fstat(opened["file[1:2]"]).st_rdev == os.makedev(1, 3)
    finally:
        for fd in opened.values():
            os.close(fd)
    assert log.read_bytes() == b"123456"


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Named, with its path."""
    with pytest.raises(KernelError, match="gone"):
        sandbox.reopen((ForeignFile("file[1:2]", str(tmp_path / "gone"), os.O_RDONLY, 0),))


@pytest.mark.parametrize(
    ("changes", "dumping", "words"),
    [
        ({}, True, None),
        ({"sandbox": ("mnt",)}, True, "nsenter"),
        ({"sandbox": ("mnt",)}, False, "nsenter"),
        ({"shared_memory": True}, True, "unshare"),
        ({"shared_memory": True}, False, None),
    ],
)
def test_criu_is_run_where_the_workload_is(changes: dict[str, object], dumping: bool, words: str | None) -> None:
    """An IPC namespace of its own is for dumps only: criu makes one for what it restores."""
    inside = sandbox.around(workload(**changes), 500, dumping=dumping)
    assert (inside.words()[0] if inside else None) == words

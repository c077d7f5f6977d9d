"""`packaging/bootstrap` with everything that it starts replaced: nothing is installed, downloaded or built."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
TOOLS = ("ip", "nft", "mmdebstrap", "zstd", "lz4", "xz", "cpio", "mkfs.ext4", "nsenter", "iasl", "as", "dtc", "gcc")


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """All tools are there, the Python environment is complete, and its python sleeps."""
    python = shutil.which("python3")
    assert python is not None
    found = {"PATH": f"{tmp_path}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "KUPGRADE_CACHE": str(tmp_path / "cache")}
    for name in (*TOOLS, "apt-get"):
        program(tmp_path / "bin" / name, "exit 0")
    program(tmp_path / "bin/id", "echo 0")
    program(tmp_path / "bin/python3", f'exec {python} "$@"')
    version = subprocess.run([python, "-VV"], capture_output=True, check=True).stdout
    key = hashlib.sha256((TREE / "pyproject.toml").read_bytes() + version).hexdigest()[:16]
    program(tmp_path / "cache/python" / key / "bin/python", f'echo "$@" >> {tmp_path}/started\nexec sleep 60')
    (tmp_path / "cache/python" / key / "complete").touch()
    return found


def members(group: int) -> list[str]:
    """The processes of a process group that have not ended."""
    listed = subprocess.run(["ps", "-e", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
    words = (line.split(None, 2) for line in listed.stdout.splitlines())
    return [each[2] for each in words if int(each[0]) == group and not each[1].startswith("Z")]


def test_tests_that_are_interrupted_leave_no_compiler_at_work(environment: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C does not reach what a shell runs in the background."""
    command = ["env", "--default-signal=INT", "sh", str(TREE / "packaging/bootstrap"), "test"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as shell:
        deadline = time.monotonic() + 30.0
        started = tmp_path / "started"
        while (not started.exists() or started.read_text().count("\n") < 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "kupgrade.rehearsal build" in started.read_text() and "pytest" in started.read_text()
        os.killpg(shell.pid, signal.SIGINT)
        assert shell.wait(10.0) in (130, -signal.SIGINT)
        deadline = time.monotonic() + 5.0
        while (left := members(shell.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            os.killpg(shell.pid, signal.SIGKILL)
    assert left == []


def test_a_cache_named_from_here_is_the_one_that_is_used(environment: dict[str, str], tmp_path: Path) -> None:
    """What is started works in the tree, where the same words would name another place."""
    command = ["sh", str(TREE / "packaging/bootstrap"), "run", "sh", "-c", 'echo "$KUPGRADE_CACHE"; command -v python']
    relative = {**environment, "KUPGRADE_CACHE": "cache"}
    done = subprocess.run(command, env=relative, cwd=tmp_path, capture_output=True, text=True, check=True)
    cache, python = done.stdout.split()
    assert cache == str(tmp_path / "cache") and python.startswith(f"{tmp_path}/cache/python/")

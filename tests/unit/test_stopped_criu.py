"""The fault by which a rehearsal stops criu in the middle of a dump."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kupgrade.host import criu_child
from kupgrade.machine import faults


@pytest.fixture(params=[["swrk", "3"], ["criu: dump --rpc -t 12 -D /images"]], ids=["called", "renamed"])
def children(request: pytest.FixtureRequest) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One that works, as criu is called or as it then calls itself; and one that only waits."""
    busy = ["sh", "-c", "while :; do :; done", *request.param]
    made = [subprocess.Popen(busy), subprocess.Popen(["sleep", "60"])]
    yield made
    for each in made:
        each.kill()
        each.wait()


def test_criu_is_stopped_when_it_works(
    children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever other children come and go meanwhile."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    pids = (ended.pid, *(each.pid for each in reversed(children)))
    monkeypatch.setattr(criu_child, "children", lambda _pid: pids)
    faults._stop_criu()
    deadline = time.monotonic() + 10.0
    while state(children[0]) not in "Tt" and time.monotonic() < deadline:
        time.sleep(0.01)  # the signal is on its way
    assert state(children[0]) in "Tt"
    assert state(children[1]) == "S"


def state(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

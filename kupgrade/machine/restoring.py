"""Who restores a workload at this moment: known also to an agent that comes after the one that asked for it.

Crash windows: a restorer is known before it takes its request, and until its answer is there. One that was never known
finds no request any more; one that ended without a word is known by a process that is gone.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host.criu_child import children
from kupgrade.kernel import proc
from kupgrade.machine.places import Places
from kupgrade.model.codec import decode, encode

_POLL = 0.005  # seconds
_PATIENCE = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Worker:
    """A PID counts only together with its start time (clock ticks)."""

    pid: int
    starttime: int


def _path(places: Places, name: str) -> Path:
    return places.restorers / f"{name}.worker"


def begin(places: Places, name: str) -> None:
    """This process restores the workload from now on."""
    path = _path(places, name)
    temporary = path.with_suffix(".worker.new")
    temporary.write_text(json.dumps(encode(Worker(os.getpid(), proc.process(os.getpid()).starttime))))
    temporary.replace(path)


def finish(places: Places, name: str) -> None:
    """It has answered."""
    _path(places, name).unlink(missing_ok=True)


def at_work(places: Places, name: str) -> int:
    """The PID of whoever restores a workload; 0: nobody."""
    try:
        worker = decode(Worker, json.loads(_path(places, name).read_text()), f"{name}.worker")
    except FileNotFoundError:
        return 0
    return worker.pid if _lives(worker.pid, worker.starttime) else 0


def _lives(pid: int, starttime: int | None = None) -> bool:
    try:
        found = proc.process(pid)
    except KernelError:
        return False
    return found.state not in "ZX" and starttime in (None, found.starttime)


def end(places: Places, name: str) -> None:
    """End whoever restores a workload, criu as well, and have nobody begin to. Raises KupgradeError."""
    for request in places.restorers.glob(f"{glob.escape(name)}.????????.request"):
        request.unlink(missing_ok=True)
    deadline = time.monotonic() + _PATIENCE
    family: list[int] = []
    while (pid := at_work(places, name)) or any(map(_lives, family)):
        if pid:
            family = [pid]
            for each in family:  # the list grows while it is walked: parents first
                family += children(each)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        if time.monotonic() > deadline:
            why = f"of the processes {' '.join(map(str, family))} SIGKILL does not end all"
            raise KupgradeError(f"What restores {name} does not end", why)
        time.sleep(_POLL)
    finish(places, name)

"""What a held unit runs until its processes are restored (see host/systemd.py for how adoption works).

A shell that names its PID and waits at a pipe: systemd has put it into the unit's cgroup, with a new journal stream.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kupgrade.machine.places import Places

SHELL = "/bin/sh"
GATE_PATIENCE = 10.0  # seconds
_POLL = 0.01


def pid_path(places: Places, name: str) -> Path:
    """Where the unit's start process puts its PID."""
    return places.restorers / f"{name}.starter"


def gate_path(places: Places, name: str) -> Path:
    """The pipe at which the unit's start process waits for its exit status."""
    return places.restorers / f"{name}.gate"


def pidfile_path(places: Places, name: str) -> Path:
    """The PID file that systemd reads."""
    return places.run / f"{name}.pid"


def start_command(places: Places, name: str, *, sandboxed: bool = False) -> tuple[str, ...]:
    """What the held unit starts. Fails closed: without an agent that waits, nothing is started.

    Inside of a sandbox it cannot write: it is known by its arguments there.
    """
    gate, starter = gate_path(places, name), pid_path(places, name)
    told = "" if sandboxed else f"echo $$ > {starter}.new && mv {starter}.new {starter} && "
    script = (
        f"[ -p {gate} ] || {{ echo 'kupgrade: no restore is under way; not started by itself' >&2; exit 1; }}; "
        f"{told}read -r status < {gate} && exit $status"
    )
    return (SHELL, "-c", script)


def open_for_start(places: Places, name: str) -> None:
    """From now on the unit's start process waits at its gate. What an earlier restore left is removed first."""
    places.restorers.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (pid_path, gate_path):
        path(places, name).unlink(missing_ok=True)
    os.mkfifo(gate_path(places, name), 0o600)


def open_gate(places: Places, name: str, status: int, patience: float = 0.0) -> bool:
    """Let the unit's start process end with `status`; whether one was there.

    It names itself first and comes to the gate then: `patience` (seconds) is for the moment in between.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fd = os.open(gate_path(places, name), os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody waits: not yet, or a workload without a unit
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
            continue
        os.write(fd, b"%d\n" % status)
        os.close(fd)
        return True

"""The restorer: what a held unit starts instead of its program (see host/systemd.py).

It runs as the unit's start process, so systemd has put it into the unit's cgroup and given it a new journal stream. It
imports what criu needs while the agent still waits for the network, then waits for the agent's request, restores the
tree (stopped), writes the PID file and ends; systemd adopts the restored root as the unit's main process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host.criu import Criu, RestoreOptions
from kupgrade.machine.places import Places
from kupgrade.model.codec import decode, encode

_POLL = 0.01  # seconds


@dataclass(frozen=True, slots=True)
class Request:
    """What to restore: `streams` are image keys (socket:[inode]) to the standard descriptor that replaces them."""

    directory: str
    streams: dict[str, int]
    root_pid: int
    pidfile: str


@dataclass(frozen=True, slots=True)
class Answer:
    """How it went; `seconds` is criu's own share."""

    pid: int
    seconds: float
    error: str


def request_path(places: Places, name: str) -> Path:
    """Where the agent puts its request."""
    return places.restorers / f"{name}.request"


def answer_path(places: Places, name: str) -> Path:
    """Where the restorer puts its answer."""
    return places.restorers / f"{name}.answer"


def pidfile_path(places: Places, name: str) -> Path:
    """The PID file that systemd reads."""
    return places.run / f"{name}.pid"


def put(path: Path, value: object) -> None:
    """Write JSON so that a reader sees all of it or nothing."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(encode(value)))
    temporary.replace(path)


def restore(request: Request, logs: Path) -> Answer:
    """One restore; never raises a KupgradeError, it answers it."""
    begun = time.monotonic()
    # swrk closes 0, 1 and 2, so what criu is to inherit needs other numbers.
    inherit = {key: os.dup(fd) for key, fd in request.streams.items()}
    try:
        pid = Criu().restore(RestoreOptions(Path(request.directory), inherit, logs))
        Path(request.pidfile).write_text(f"{pid}\n")
    except (KupgradeError, OSError) as error:
        return Answer(0, time.monotonic() - begun, str(error))
    finally:
        for fd in inherit.values():
            os.close(fd)
    return Answer(pid, time.monotonic() - begun, "")


def main(argv: list[str]) -> int:
    """`restorer NAME DEADLINE`: wait for the request (seconds), restore, answer. Fails closed without a request."""
    name, deadline = argv[0], time.monotonic() + float(argv[1])
    places = Places()
    places.restorers.mkdir(mode=0o700, parents=True, exist_ok=True)
    import pycriu  # noqa: F401  # the slow part, done while the agent waits for the network

    path = request_path(places, name)
    while not path.exists():
        if time.monotonic() > deadline:
            print(f"kupgrade: no restore was asked for {name}; it is not started by itself", file=sys.stderr)  # noqa: T201
            return 1
        time.sleep(_POLL)
    request = decode(Request, json.loads(path.read_text()), f"request for {name}")
    path.unlink()
    logs = places.run / "logs" / name
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    answer = restore(request, logs)
    put(answer_path(places, name), answer)
    return 1 if answer.error else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

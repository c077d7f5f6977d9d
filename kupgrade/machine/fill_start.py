"""A page server's first process: nobody's child, out of every unit, hard to end."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import NoReturn

from kupgrade.errors import KupgradeError
from kupgrade.machine.page_server import Charge, Ring, say

_EXPENDABLE_LAST = "-1000"  # oom_score_adj: never


def start(charge: Charge) -> None:
    """Fork keeper and server, and come back when criu can be started. Raises KupgradeError."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _detach(charge, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        told = answers.read().decode(errors="replace")
    os.waitpid(child, 0)
    if told != "ready":
        raise KupgradeError("The memory cannot be filled in place", told or "its page server ended without a word")


def _detach(charge: Charge, writer: int) -> NoReturn:
    """In the child: a process of nobody's, with nothing open. `writer`: told when all is ready, or why it is not."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.closerange(3, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for path, text in (
            (charge.root / "proc/self/oom_score_adj", _EXPENDABLE_LAST),
            (charge.root / "sys/fs/cgroup/cgroup.procs", str(os.getpid())),
        ):
            with contextlib.suppress(OSError):  # before systemd mounts it there is no unit to leave
                path.write_text(text)
        ring = Ring(charge)
        os.write(writer, b"ready")
        os.close(writer)
        ring.begin()
    except BaseException as error:  # a forked process must never run on as its parent
        with contextlib.suppress(OSError):
            os.write(writer, f"{error}".encode())
        say(f"{charge.name}: {type(error).__name__}: {error}")
    finally:
        os._exit(1)

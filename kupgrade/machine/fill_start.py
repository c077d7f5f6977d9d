"""A page server's first process: nobody's child, out of every unit, hard to end."""

from __future__ import annotations

import contextlib
import os
import resource

from kupgrade.errors import KupgradeError
from kupgrade.machine import detached
from kupgrade.machine.page_server import Charge, Ring, say


def start(charge: Charge) -> None:
    """Fork keeper and server, and come back when criu can be started. Raises KupgradeError."""
    told = detached.start(charge.root, charge.name, lambda writer: _serve(charge, writer)).decode(errors="replace")
    if told != "ready":
        raise KupgradeError("The memory cannot be filled in place", told or "its page server ended without a word")


def _serve(charge: Charge, writer: int) -> int:
    """`writer`: told when all is ready, or why it is not."""
    try:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        ring = Ring(charge)
        os.write(writer, b"ready")
        os.close(writer)
        ring.begin()
    except BaseException as error:  # told where the server's own words go, and to whoever waits
        with contextlib.suppress(OSError):
            os.write(writer, f"{error}".encode())
        say(f"{charge.name}: {type(error).__name__}: {error}")
    return 1

"""The watchdog of a service (WatchdogSec=): while its processes stand still systemd would take it for dead.

A service may change its own time-out by sd_notify(3), WATCHDOG_USEC=, and 0 stops the watchdog; root may send that in
the name of its main process. What is set so outlives a daemon-reload and ends with the next start of the unit. The
process itself goes on to beat as its environment tells it to; systemd takes a beat that it does not wait for.
"""

from __future__ import annotations

import socket
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import journal_push

NOTIFY = "run/systemd/notify"


def set_timeout(pid: int, seconds: float, root: Path = Path("/")) -> None:
    """Let the watchdog of the unit whose main process is `pid` count so long from now on; 0: not at all.

    Comes back when systemd has taken it. Raises KupgradeError.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(journal_push.TIMEOUT)
            manager.connect(str(root / NOTIFY))
            journal_push.send(manager, f"WATCHDOG_USEC={int(seconds * 1e6)}".encode(), (), pid)
            journal_push.barrier(manager, pid)
    except OSError as error:
        raise KupgradeError("systemd could not be told of a watchdog", f"of process {pid}: {error}") from error

"""sd_notify(3): one datagram to the service manager; without one nothing is sent."""

from __future__ import annotations

import os
import socket


def notify(patience: float = 0.0, /, **states: str | int) -> bool:
    """E.g. notify(READY=1, STATUS="…"); whether somebody was told. Never raises OSError.

    Waits at most `patience` seconds for room in the manager's queue: 0 for what may be lost, as the next says it again.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    lines = (f"{name}={' '.join(str(value).split())}" for name, value in states.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(patience)
            sender.sendto("\n".join(lines).encode(), address.replace("@", "\0", 1))
    except OSError:
        return False
    return True


def watchdog_seconds() -> float | None:
    """How often the manager wants to hear from this process at least; None: not at all (sd_watchdog_enabled(3))."""
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 1e6

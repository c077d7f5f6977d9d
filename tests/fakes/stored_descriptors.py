"""Descriptors as services store them, and as they come to another kernel."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kupgrade.machine.descriptor_holder import Held, Taken, fetch, hold
from tests.fakes.liveupdate import FakeLiveUpdate

SESSION = "kupgrade-fds-20261121-041503-9f2c1a"
UNIT, OTHER = "state.service", "other.service"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
LOST = (f"{UNIT}: table", f"{UNIT}: cache")


def memfd(content: bytes, seals: int = 0) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def taken() -> list[Taken]:
    table = memfd(b"table", SEALS)
    return [
        Taken(UNIT, "table", table, writable=False),
        Taken(UNIT, "cache", memfd(b"cache" * 100_000)),
        Taken(OTHER, "same", os.dup(table), writable=False),
    ]


def held_here(device: FakeLiveUpdate, root: Path) -> Held:
    return hold(SESSION, taken(), root, device)


def came(root: Path, device: FakeLiveUpdate | None = None) -> Held:
    """As another kernel finds them."""
    device = device or FakeLiveUpdate()
    held_here(device, root)
    device.kexec()
    return fetch(SESSION, root, device)

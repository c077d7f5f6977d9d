"""Control groups, version 2: members, freezer (Documentation/admin-guide/cgroup-v2.rst).

A cgroup is named by its path in the hierarchy, as /proc/PID/cgroup shows it: /system.slice/nginx.service.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import time
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import read_text, reported, write_text

MOUNTPOINTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified")  # unified, and systemd's hybrid layout


class FreezerState(enum.Enum):
    """What cgroup.events and cgroup.freeze say together."""

    THAWED = "thawed"
    FREEZING = "freezing"  # asked for, but some task still runs
    FROZEN = "frozen"
    UNKNOWN = "unknown"  # no such cgroup, the root cgroup, or no v2 hierarchy


def hierarchy(root: Path = Path("/")) -> Path:
    """Where the v2 hierarchy is mounted. Raises KernelError (ENOENT) when it is not."""
    for place in MOUNTPOINTS:
        if (root / place / "cgroup.controllers").exists():
            return root / place
    raise KernelError("open", str(root / MOUNTPOINTS[0] / "cgroup.controllers"), errno.ENOENT)


def directory(cgroup: str, root: Path = Path("/")) -> Path:
    """The cgroup's directory. Raises KernelError (ENOENT) without a v2 hierarchy."""
    return hierarchy(root) / cgroup.lstrip("/")


def exists(cgroup: str, root: Path = Path("/")) -> bool:
    """Whether the cgroup is there."""
    try:
        return directory(cgroup, root).is_dir()
    except KernelError:
        return False


def find_unit(unit: str, root: Path = Path("/")) -> str | None:
    """The cgroup named as the unit (nginx.service), the shallowest if several; None if there is none."""
    top = hierarchy(root)
    found = [path for path in top.rglob(unit) if path.is_dir()]
    if not found:
        return None
    return "/" + str(min(found, key=lambda path: (len(path.parts), path)).relative_to(top))


def enter(cgroup: str, root: Path = Path("/")) -> None:
    """Move the calling process into the cgroup, making it when it is not there. Raises KernelError."""
    folder = directory(cgroup, root)
    with reported("mkdir", folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "cgroup.procs", str(os.getpid()))


def members(cgroup: str, root: Path = Path("/")) -> tuple[int, ...]:
    """PIDs in the cgroup and below it, sorted. A cgroup removed meanwhile has none. Raises KernelError."""
    top = directory(cgroup, root)
    found = _pids(top)
    with reported("readdir", top):
        below = sorted(folder for folder, _, files in os.walk(top, onerror=_unless_removed) if "cgroup.procs" in files)
    for path in below:
        try:
            found |= _pids(Path(path))
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise  # EOPNOTSUPP: a threaded cgroup, whose processes its domain lists
    return tuple(sorted(found))


def _unless_removed(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENODEV):
        raise error


def _pids(folder: Path) -> set[int]:
    return {int(word) for word in read_text(folder / "cgroup.procs").split()}


def _events(folder: Path) -> dict[str, str]:
    lines = read_text(folder / "cgroup.events").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def populated(cgroup: str, root: Path = Path("/")) -> bool | None:
    """Whether a live process is in it or below; None when unknown."""
    try:
        return {"0": False, "1": True}.get(_events(directory(cgroup, root)).get("populated", ""))
    except KernelError:
        return None


def state(cgroup: str, root: Path = Path("/")) -> FreezerState:
    """The freezer's state; never raises."""
    try:
        folder = directory(cgroup, root)
        frozen, asked = _events(folder).get("frozen"), read_text(folder / "cgroup.freeze").strip()
    except KernelError:
        return FreezerState.UNKNOWN
    match frozen, asked:
        case "1", _:
            return FreezerState.FROZEN  # also when only an ancestor was asked
        case "0", "1":
            return FreezerState.FREEZING
        case "0", "0":
            return FreezerState.THAWED
    return FreezerState.UNKNOWN


def freeze(cgroup: str, timeout: float, root: Path = Path("/")) -> None:
    """Freeze every process in and below the cgroup and wait until the kernel says so.

    After `timeout` seconds raises KernelError (ETIMEDOUT) and leaves the request standing: the caller thaws.
    """
    _request(cgroup, "1", timeout, root)


def thaw(cgroup: str, timeout: float, root: Path = Path("/")) -> None:
    """Thaw and wait; as `freeze`. A cgroup below a frozen one cannot thaw and times out."""
    _request(cgroup, "0", timeout, root)


def _request(cgroup: str, value: str, timeout: float, root: Path) -> None:
    folder = directory(cgroup, root)
    deadline = time.monotonic() + timeout
    with reported("open", folder / "cgroup.events"):
        events = (folder / "cgroup.events").open()
    with events:
        write_text(folder / "cgroup.freeze", value)
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while True:
            # Read before waiting: a change between write and poll is then never missed.
            if _events(folder).get("frozen") == value:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise KernelError("write", str(folder / "cgroup.freeze"), errno.ETIMEDOUT)
            events.seek(0)
            with reported("read", folder / "cgroup.events"):
                events.read()  # arms the next notification
            poll.poll(min(left, 0.1) * 1000)

"""What a unit gives its service besides a process: mounts and a host name of its own, and standard files of the host's.

systemd makes namespaces for each command that it starts, from the unit's own settings, so it does so for the start
process of a unit that is held: that has the sandbox which the restored processes are put into, as criu is run inside.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host.criu_child import Inside
from kupgrade.kernel import cgroup, namespaces, proc, process, sysvipc
from kupgrade.kernel.libc import Libc, reported
from kupgrade.kernel.process import FdKind
from kupgrade.model.workload import Workload

MNT_DETACH = 2  # include/linux/fs.h
_POLL = 0.01  # seconds
_PATHS = (FdKind.FILE, FdKind.DIRECTORY, FdKind.DEVICE, FdKind.FIFO)


@dataclass(frozen=True, slots=True)
class ForeignFile:
    """A file that systemd opened for the service before it made its mount namespace. `key`: criu's name of it."""

    key: str
    path: str
    flags: int  # as open(2), access mode and O_APPEND
    offset: int


def view(pid: int, root: Path = Path("/")) -> Path:
    """What the process sees as its root."""
    return root / "proc" / str(pid) / "root"


def around(workload: Workload, pid: int, *, dumping: bool) -> Inside | None:
    """Where criu runs for the workload, in the namespaces of `pid`; None: where we are."""
    own_ipc = dumping and workload.shared_memory
    return Inside(pid, workload.sandbox, own_ipc) if workload.sandbox or own_ipc else None


def foreign_files(pids: Iterable[int], root_pid: int) -> tuple[ForeignFile, ...]:
    """Open files whose mounts are not in the mount namespace of the workload, each once."""
    mounts = {mount.id for mount in namespaces.mounts(root_pid)}
    found: dict[str, ForeignFile] = {}
    for pid in pids:
        for fd in process.fds(pid):
            if fd.kind in _PATHS and fd.mount_id not in mounts:
                key = f"file[{fd.mount_id:x}:{fd.inode:x}]"
                flags = fd.flags & (os.O_ACCMODE | os.O_APPEND)
                found[key] = ForeignFile(key, fd.name, flags, _offset(pid, fd.number))
    return tuple(found.values())


def _offset(pid: int, number: int) -> int:
    text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    return int(next((line.split()[1] for line in text.splitlines() if line.startswith("pos:")), "0"))


def reopen(files: Iterable[ForeignFile]) -> dict[str, int]:
    """Descriptors of ours for them, by key; the caller closes them."""
    opened: dict[str, int] = {}
    for file in files:
        with reported("open", file.path):
            opened[file.key] = os.open(file.path, file.flags | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # what cannot be sought has no offset
            os.lseek(opened[file.key], file.offset, os.SEEK_SET)
    return opened


def segments(pids: Iterable[int]) -> frozenset[int]:
    """IDs of the System V segments that the processes have attached; a mapping's inode is the segment's ID."""
    attached = {m.inode for pid in pids for m in process.mappings(pid) if m.path.startswith("/SYSV")}
    return frozenset(each.id for each in sysvipc.objects() if each.kind == "shm" and each.id in attached)


def await_starter(path: str, gate: Path, deadline: float) -> int:
    """The PID of the start process in a cgroup that waits at `gate`, once it has its sandbox; 0: none until then."""
    while True:
        found = starter(path, gate)
        if found or time.monotonic() > deadline:
            return found
        time.sleep(_POLL)


def starter(path: str, gate: Path) -> int:
    """The same, as it is now. systemd's own child, which makes the sandbox, has other arguments before."""
    with contextlib.suppress(KernelError):
        for pid in cgroup.members(path):
            with contextlib.suppress(KernelError):
                if any(str(gate) in word for word in proc.arguments(pid)):
                    return pid
    return 0


def unmount_inside(pid: int, path: str) -> None:
    """Take a mount away that only the start process needed. In a child: whoever enters a namespace stays there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            libc = Libc()
            fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            libc.setns(fd, 0)
            libc.umount2(Path(path), MNT_DETACH)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1] != 0:
        raise KupgradeError(f"{path} could not be unmounted in the sandbox", f"of process {pid}")

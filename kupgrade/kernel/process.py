"""What one process holds: descriptors, namespaces, mappings, memory (proc_pid_fd(5), proc_pid_maps(5)).

Every function raises KernelError; ENOENT or ESRCH: the process is gone.
"""

from __future__ import annotations

import enum
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import read_text, reported
from kupgrade.kernel.proc import GONE, sizes

_ANON = re.compile(r"anon_inode:\[?([^\]]*)\]?")
_INODE = re.compile(r"([a-z_]+):\[(\d+)\]")


class FdKind(enum.Enum):
    """What a descriptor refers to."""

    FILE = "file"
    DIRECTORY = "directory"
    DELETED = "deleted"  # a file or directory without a name
    MEMFD = "memfd"
    DEVICE = "device"
    FIFO = "fifo"  # with a name in a file system
    PIPE = "pipe"
    SOCKET = "socket"
    NAMESPACE = "namespace"
    ANON_INODE = "anon_inode"  # `name` says which: eventpoll, io_uring, bpf-map, perf_event, ...
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Fd:
    """One descriptor. `target`: as readlink shows it; `name`: path, or kind of anon_inode or namespace.

    `inode`: of a socket, pipe or file (0 unknown). `device`: number of a DEVICE, else of the file system.
    `flags`: as open(2). `locks`: file locks held through it. `protocol`: of a socket, e.g. TCP, UNIX-STREAM,
    VSOCK (sockfs attribute system.sockprotoname); empty when unknown.
    """

    number: int
    kind: FdKind
    target: str
    name: str
    inode: int = 0
    device: int = 0
    size: int = 0
    mtime_ns: int = 0
    flags: int = 0
    mount_id: int = 0
    locks: int = 0
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps; addresses in bytes, `path` without the mark of a deleted file."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str  # major:minor in hex
    inode: int
    path: str
    deleted: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def is_device(self) -> bool:
        """Whether it maps a device (criu cannot dump that); shared memory under /dev is none."""
        shared = ("/dev/shm/", "/dev/zero", "/dev/hugepages", "/dev/mqueue")  # noqa: S108
        return self.path.startswith("/dev/") and not self.path.startswith(shared)

    @property
    def is_hugetlb(self) -> bool:
        """Whether it is backed by hugetlb pages."""
        return self.path.startswith(("/anon_hugepage", "/dev/hugepages"))


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in use, in bytes. `pss`: shared pages counted in parts (None: smaps_rollup is unreadable)."""

    rss: int
    pss: int | None
    anonymous: int
    shmem: int
    swap: int
    hugetlb: int


def _kind(target: str, status: os.stat_result | None) -> tuple[FdKind, str]:
    """Kind and name from the link's text; `status` decides among what has a path."""
    if match := _ANON.fullmatch(target):
        return FdKind.ANON_INODE, match[1]
    if match := _INODE.fullmatch(target):
        return {"socket": FdKind.SOCKET, "pipe": FdKind.PIPE}.get(match[1], FdKind.NAMESPACE), match[1]
    if target.startswith("/memfd:"):
        return FdKind.MEMFD, target.removeprefix("/memfd:").removesuffix(" (deleted)")
    if not target.startswith("/"):
        return FdKind.UNKNOWN, target
    if status is None:
        return FdKind.DEVICE if target.startswith("/dev/") else FdKind.UNKNOWN, target
    if status.st_nlink == 0 and target.endswith(" (deleted)"):
        return FdKind.DELETED, target.removesuffix(" (deleted)")
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFREG:
            return FdKind.FILE, target
        case stat.S_IFDIR:
            return FdKind.DIRECTORY, target
        case stat.S_IFCHR | stat.S_IFBLK:
            return FdKind.DEVICE, target
        case stat.S_IFIFO:
            return FdKind.FIFO, target
    return FdKind.UNKNOWN, target


def _protocol(link: Path) -> str:
    try:
        return os.getxattr(link, "system.sockprotoname").rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""  # no fact, and none is owed: the socket tables are asked too


def _fd(folder: Path, number: int) -> Fd:
    link = folder / "fd" / str(number)
    with reported("readlink", link):
        target = str(link.readlink())
    try:
        status = link.stat()
    except OSError:
        status = None
    kind, name = _kind(target, status)
    info: dict[str, str] = {}
    locks = 0
    for line in read_text(folder / "fdinfo" / str(number)).splitlines():
        key, _, value = line.partition(":")
        info[key] = value.strip()
        locks += key == "lock"
    match = _INODE.fullmatch(target)
    return Fd(
        number=number,
        kind=kind,
        target=target,
        name=name,
        inode=int(match[2]) if match else status.st_ino if status else 0,
        device=0 if status is None else status.st_rdev if kind is FdKind.DEVICE else status.st_dev,
        size=status.st_size if status else 0,
        mtime_ns=status.st_mtime_ns if status else 0,
        flags=int(info.get("flags", "0"), 8),
        mount_id=int(info.get("mnt_id", "0")),
        locks=locks,
        protocol=_protocol(link) if kind is FdKind.SOCKET else "",
    )


def fds(pid: int, root: Path = Path("/")) -> tuple[Fd, ...]:
    """Every open descriptor, by number; one closed meanwhile is left out."""
    folder = root / "proc" / str(pid)
    with reported("readdir", folder / "fd"):
        numbers = sorted(int(name) for name in os.listdir(folder / "fd"))  # noqa: PTH208
    found = []
    for number in numbers:
        try:
            found.append(_fd(folder, number))
        except KernelError as error:
            if error.errno not in GONE:
                raise
    return tuple(found)


def socket_inodes(pid: int, root: Path = Path("/")) -> frozenset[int]:
    """Of all sockets that it has open; one closed meanwhile is left out."""
    folder = root / "proc" / str(pid) / "fd"
    with reported("readdir", folder):
        names = os.listdir(folder)  # noqa: PTH208
    found = set()
    for name in names:
        try:
            target = os.readlink(folder / name)  # noqa: PTH115 - there may be thousands
        except OSError as error:
            if error.errno not in GONE:
                raise KernelError("readlink", str(folder / name), error.errno or 0) from error
            continue
        match = _INODE.fullmatch(target)
        if match and match[1] == "socket":
            found.add(int(match[2]))
    return frozenset(found)


def namespaces(pid: int, root: Path = Path("/")) -> dict[str, int]:
    """Kinds of namespaces (cgroup, ipc, mnt, net, pid, time, user, uts, *_for_children) to inode numbers."""
    folder = root / "proc" / str(pid) / "ns"
    with reported("readdir", folder):
        names = sorted(os.listdir(folder))  # noqa: PTH208
    found = {}
    for name in names:
        with reported("readlink", folder / name):
            match = _INODE.fullmatch(str((folder / name).readlink()))
        if match:
            found[name] = int(match[2])
    return found


def foreign_namespaces(pid: int, root: Path = Path("/")) -> tuple[str, ...]:
    """The kinds of namespaces that the process does not share with PID 1."""
    return differing_namespaces(pid, 1, root)


def differing_namespaces(pid: int, other: int, root: Path = Path("/")) -> tuple[str, ...]:
    """The kinds of namespaces that two processes do not share."""
    own, theirs = namespaces(pid, root), namespaces(other, root)
    return tuple(name for name, inode in own.items() if theirs.get(name) != inode)


def mappings(pid: int, root: Path = Path("/")) -> tuple[Mapping, ...]:
    """Every mapping, by address."""
    found = []
    for line in filter(None, read_text(root / "proc" / str(pid) / "maps").split("\n")):  # not splitlines: names
        words = line.split(maxsplit=5)
        start, _, end = words[0].partition("-")
        # proc_pid_maps(5): a newline in a path is written as \012, nothing else is escaped
        path = words[5].replace("\\012", "\n") if len(words) > 5 else ""
        found.append(
            Mapping(
                start=int(start, 16),
                end=int(end, 16),
                permissions=words[1],
                offset=int(words[2], 16),
                device=words[3],
                inode=int(words[4]),
                path=path.removesuffix(" (deleted)"),
                deleted=path.endswith(" (deleted)"),
            )
        )
    return tuple(found)


def memory(pid: int, root: Path = Path("/")) -> Memory:
    """Memory of the process: from smaps_rollup where readable, else from status."""
    folder = root / "proc" / str(pid)
    facts = sizes(read_text(folder / "status"))
    try:
        rollup = sizes(read_text(folder / "smaps_rollup"))
    except KernelError as error:
        if error.errno in GONE and not folder.exists():
            raise
        rollup = {}  # no CONFIG_PROC_PAGE_MONITOR, or not ours to see
    return Memory(
        rss=rollup.get("Rss", facts.get("VmRSS", 0)),
        pss=rollup.get("Pss"),
        anonymous=rollup.get("Anonymous", facts.get("RssAnon", 0)),
        shmem=facts.get("RssShmem", 0),
        swap=rollup.get("Swap", facts.get("VmSwap", 0)),
        hugetlb=facts.get("HugetlbPages", 0),
    )

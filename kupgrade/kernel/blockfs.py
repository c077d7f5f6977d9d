"""Mounted file systems, and freezing those on block devices.

Sources: proc_pid_mountinfo(5), ioctl_fsfreeze(2).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import mmap
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import FIFREEZE, FITHAW, read_text, reported

_DIRECT_UNIT = 4096  # bytes: what O_DIRECT offsets and lengths are multiples of, on any device of today
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `device`: major:minor of the superblock; `subroot`: what of it is mounted.

    `options` belong to this mount, `super_options` to the file system as a whole.
    """

    id: int
    parent: int
    device: str
    subroot: str
    mountpoint: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def block_backed(self) -> bool:
        """Whether it lies on a block device (btrfs shows an anonymous device number but names its source)."""
        return not self.device.startswith("0:") or self.source.startswith("/dev/")

    @property
    def writable(self) -> bool:
        """Whether the file system itself, not just this mount of it, is writable."""
        return "rw" in self.super_options


class FreezeResult(enum.Enum):
    """What FIFREEZE or FITHAW did."""

    DONE = "done"
    ALREADY = "already"  # was frozen (EBUSY), or was thawed (EINVAL)
    UNSUPPORTED = "unsupported"  # the file system cannot be frozen (EOPNOTSUPP)


class IoctlCalls(Protocol):
    """The one call this module needs of Libc."""

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """See Libc."""
        ...


def _text(word: str) -> str:
    """Undo the octal escapes of blank, tab, newline, backslash and #."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), word)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Every mount, in the kernel's order. Lines that do not have the documented shape are left out."""
    found = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not dash or len(left) < 6 or len(right) < 3 or not (left[0].isdecimal() and left[1].isdecimal()):
            continue
        found.append(
            Mount(
                id=int(left[0]),
                parent=int(left[1]),
                device=left[2],
                subroot=_text(left[3]),
                mountpoint=_text(left[4]),
                options=tuple(left[5].split(",")),
                fstype=right[0],
                source=_text(right[1]),
                super_options=tuple(right[2].split(",")),
            )
        )
    return tuple(found)


def mounts(root: Path = Path("/"), pid: str = "self") -> tuple[Mount, ...]:
    """Mounts as the process sees them. Raises KernelError."""
    return parse_mountinfo(read_text(root / "proc" / pid / "mountinfo"))


def mounts_elsewhere(ours: Iterable[Mount], root: Path = Path("/")) -> tuple[Mount, ...]:
    """Mounts of file systems that none of `ours` shows: a process in a mount namespace of its own sees them alone."""
    known = {mount.device for mount in ours}
    namespaces: set[str] = set()
    found = []
    for process in (root / "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, KernelError):  # one that has ended meanwhile
            if (namespace := str((process / "ns/mnt").readlink())) not in namespaces:
                namespaces.add(namespace)
                found += [mount for mount in mounts(root, process.name) if mount.device not in known]
                known |= {mount.device for mount in found}
    return tuple(found)


def holding(everything: Iterable[Mount], path: str) -> Mount | None:
    """The mount that holds an absolute `path`; of several on one mount point the last, on top."""
    best = None
    for mount in everything:
        inside = mount.mountpoint.rstrip("/") + "/"
        if (path.rstrip("/") + "/").startswith(inside) and (
            best is None or len(mount.mountpoint) >= len(best.mountpoint)
        ):
            best = mount
    return best


def loop_files(devices: Iterable[str], root: Path = Path("/")) -> dict[str, str]:
    """Device numbers that end on a loop device, to its backing file; device mapper is looked through."""
    found = {}
    for device in devices:
        todo = [root / "sys/dev/block" / device]
        while todo:
            folder = todo.pop()
            try:
                backing = (folder / "loop/backing_file").read_text()
                found[device] = backing.rstrip("\n").removesuffix(" (deleted)")
            except OSError:
                slaves = folder / "slaves"  # not a loop device: what does it stand on?
                todo += slaves.iterdir() if slaves.is_dir() else ()
    return found


def freeze_order(everything: Iterable[Mount], loops: Mapping[str, str]) -> tuple[Mount, ...]:
    """The writable block-backed file systems in an order in which they can be frozen one after another.

    Each superblock once, by its shallowest mount. A file system in a loop file comes before the one that
    holds the file (its last writes go there), deeper mount points before shallower ones (their paths are
    walked through those), the root last. Thaw in the opposite order.
    """
    everything = tuple(everything)
    chosen: dict[str, Mount] = {}
    for mount in everything:
        if mount.block_backed and mount.writable:
            known = chosen.get(mount.device)
            if known is None or _depth(mount) < _depth(known):
                chosen[mount.device] = mount

    def loops_below(mount: Mount) -> int:
        seen: set[str] = set()
        below: Mount | None = mount
        while below is not None and below.device in loops and below.device not in seen:
            seen.add(below.device)
            below = holding(everything, loops[below.device])
        return len(seen)

    return tuple(sorted(chosen.values(), key=lambda m: (-loops_below(m), -_depth(m), m.mountpoint)))


def _depth(mount: Mount) -> int:
    return len([part for part in mount.mountpoint.split("/") if part])


def to_freeze(root: Path = Path("/")) -> tuple[Mount, ...]:
    """`freeze_order` of this machine. Raises KernelError."""
    everything = mounts(root)
    return freeze_order(everything, loop_files({mount.device for mount in everything}, root))


def _fsfreeze(calls: IoctlCalls, mountpoint: Path, request: int, already: int) -> FreezeResult:
    with reported("open", mountpoint):
        fd = os.open(mountpoint, os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.ioctl(fd, request)
    except KernelError as error:
        if error.errno == already:
            return FreezeResult.ALREADY
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return FreezeResult.UNSUPPORTED
        name = "FIFREEZE" if request == FIFREEZE else "FITHAW"
        raise KernelError(name, str(mountpoint), error.errno) from error
    finally:
        os.close(fd)
    return FreezeResult.DONE


def freeze(calls: IoctlCalls, mountpoint: Path) -> FreezeResult:
    """Write everything back and block writers until `thaw`. Raises KernelError (EPERM, EIO, ...)."""
    return _fsfreeze(calls, mountpoint, FIFREEZE, errno.EBUSY)


def thaw(calls: IoctlCalls, mountpoint: Path) -> FreezeResult:
    """Let writers go on. Raises KernelError."""
    return _fsfreeze(calls, mountpoint, FITHAW, errno.EINVAL)


def read_rate(path: Path, limit: int = 16 << 20) -> float | None:
    """Bytes a second of reading a file past the page cache (open(2), O_DIRECT); None: it cannot be read that way."""
    with contextlib.suppress(OSError), mmap.mmap(-1, 1 << 20) as buffer:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            done, begun = 0, time.perf_counter()
            while done < limit and (count := os.preadv(fd, [buffer], done)):
                done += count
                if count % _DIRECT_UNIT:
                    break  # the end of the file; going on from there is not aligned
            return done / (time.perf_counter() - begun) if done >= 1 << 20 else None
        finally:
            os.close(fd)
    return None


def free_bytes(path: Path) -> int:
    """Bytes that an unprivileged process may still write below `path`. Raises KernelError."""
    with reported("statvfs", path):
        status = os.statvfs(path)
    return status.f_bavail * status.f_frsize

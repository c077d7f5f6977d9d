"""What a process's namespaces are like: whose mounts it sees, whose IDs it has (namespaces(7), user_namespaces(7)).

Every function raises KernelError; ENOENT or ESRCH: the process is gone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel import blockfs
from kupgrade.kernel.blockfs import Mount
from kupgrade.kernel.libc import Libc, read_text, reported

_CLONE_NEWUTS = 0x04000000  # include/uapi/linux/sched.h
_FLAGS = ("ro", "nosuid", "nodev", "noexec")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What /proc/PID/status tells: real user ID, capability sets as numbers, whether no privileges can be gained."""

    uid: int
    permitted: int
    effective: int
    ambient: int
    bounding: int
    no_new_privileges: bool

    @property
    def powerless(self) -> bool:
        """Whether it has no capability, and can come by none: so it has the same power in any user namespace."""
        none = not (self.permitted or self.effective or self.ambient)
        return none and self.uid != 0 and (self.no_new_privileges or not self.bounding)


def credentials(pid: int, root: Path = Path("/")) -> Credentials:
    """Of one process."""
    lines = read_text(root / "proc" / str(pid) / "status").splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)

    def caps(name: str) -> int:
        return int(facts.get(name, "0"), 16)

    return Credentials(
        uid=int(facts["Uid"].split()[0]),
        permitted=caps("CapPrm"),
        effective=caps("CapEff"),
        ambient=caps("CapAmb"),
        bounding=caps("CapBnd"),
        no_new_privileges=facts.get("NoNewPrivs", "0").strip() == "1",
    )


def same_id(text: str, wanted: int) -> bool:
    """Whether a /proc/PID/uid_map (or gid_map) gives `wanted` the number that it has outside."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0].isdecimal():
            inside, outside, count = map(int, words)
            if inside <= wanted < inside + count:
                return inside == outside
    return False


def keeps_ids(pid: int, root: Path = Path("/")) -> bool:
    """Whether its user and group have the same numbers in its user namespace as in ours."""
    folder = root / "proc" / str(pid)
    lines = read_text(folder / "status").splitlines()
    found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name in _IDS}
    return all(same_id(read_text(folder / _IDS[name]), number) for name, number in found.items())


_IDS = {"Uid": "uid_map", "Gid": "gid_map"}


@dataclass(frozen=True, slots=True)
class Held:
    """A mount by which a namespace differs from the host's: its flags that restrict, in the order of _FLAGS.

    `hosts`: the host has a mount there, too, with other flags.
    """

    mountpoint: str
    flags: tuple[str, ...]
    hosts: bool


def own_mounts(theirs: tuple[Mount, ...], ours: tuple[Mount, ...]) -> tuple[Held, ...]:
    """The mounts by which a namespace differs from ours: what a sandbox consists of.

    What a sandbox lets its service see of ours, as we see it, is none of them; other mounts may come to that later.
    """
    host = _seen(ours)
    return tuple(
        Held(mountpoint, flags, mountpoint in host)
        for mountpoint, flags in sorted(_seen(theirs).items())
        if host.get(mountpoint) != flags
    )


def _seen(mounts: tuple[Mount, ...]) -> dict[str, tuple[str, ...]]:
    """Of several on one mount point the last one, on top, is seen."""
    return {each.mountpoint: tuple(flag for flag in _FLAGS if flag in each.options) for each in mounts}


def weaker(before: Iterable[Held], now: tuple[Mount, ...]) -> tuple[str, ...]:
    """Those of `before` whose place has fewer restrictions now, as text.

    In a system that has just begun to start the host's own mounts may not be there yet, and are no matter then; where a
    mount of the sandbox's is missing, what holds the place counts.
    """
    there = {mount.mountpoint for mount in now}
    found = []
    for each in before:
        if each.hosts and each.mountpoint not in there:
            continue
        holder = blockfs.holding(now, each.mountpoint)
        has = holder.options if holder is not None else ()
        if any(flag not in has for flag in each.flags):
            found.append(f"{each.mountpoint} {','.join(each.flags)}")
    return tuple(found)


def memory_mounts(theirs: tuple[Mount, ...], ours: tuple[Mount, ...]) -> tuple[str, ...]:
    """Where a namespace has writable file systems in memory that are not ours, devices apart."""
    known = {mount.device for mount in ours}
    return tuple(
        mount.mountpoint
        for mount in theirs
        if mount.fstype in ("tmpfs", "ramfs") and mount.device not in known and "rw" in mount.options
        if not (mount.mountpoint + "/").startswith(("/dev/", "/run/systemd/"))
    )


def private_directories(theirs: tuple[Mount, ...]) -> tuple[str, ...]:
    """Where a namespace has directories for temporary files of its own (systemd.exec(5), PrivateTmp=)."""
    return tuple(mount.mountpoint for mount in theirs if "/systemd-private-" in mount.subroot + "/")


def hostname(pid: int) -> str:
    """As the process is told it. By a thread, as who enters a namespace stays there."""
    found: list[str] = []
    failed: list[KernelError] = []

    def look() -> None:
        try:
            with reported("open", f"/proc/{pid}/ns/uts"):
                fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
            try:
                Libc().setns(fd, _CLONE_NEWUTS)
            finally:
                os.close(fd)
            found.append(os.uname().nodename)
        except KernelError as error:
            failed.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def mounts(pid: int, root: Path = Path("/")) -> tuple[Mount, ...]:
    """As the process sees them."""
    return blockfs.mounts(root, str(pid))

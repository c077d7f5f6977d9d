"""What a process's namespaces are like: whose mounts it sees, whose IDs it has (namespaces(7), user_namespaces(7)).

Every function raises KernelError; ENOENT or ESRCH: the process is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from kupgrade.kernel import blockfs
from kupgrade.kernel.blockfs import Mount
from kupgrade.kernel.libc import read_text

_FLAGS = ("ro", "nosuid", "nodev", "noexec")
_COMBINED = frozenset(",".join(some) for count in range(1, 5) for some in combinations(_FLAGS, count))


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


def own_mounts(theirs: tuple[Mount, ...], ours: tuple[Mount, ...]) -> frozenset[str]:
    """The mounts by which a namespace differs from ours, as `MOUNTPOINT FLAGS`: what a sandbox consists of.

    What a sandbox lets its service see of ours, as we see it, is none of them; other mounts may come to that later.
    """
    return frozenset(_seen(theirs) - _seen(ours))


def _seen(mounts: tuple[Mount, ...]) -> set[str]:
    found: dict[str, str] = {}
    for each in mounts:  # of several on one mount point the last one, on top, is seen
        found[each.mountpoint] = ",".join(flag for flag in _FLAGS if flag in each.options)
    return {f"{mountpoint} {flags}".strip() for mountpoint, flags in found.items()}


def weaker(before: Iterable[str], now: tuple[Mount, ...]) -> tuple[str, ...]:
    """Those of `before`, as own_mounts tells them, whose place has fewer restrictions now.

    What was mounted there may not be yet, in a system that has just begun to start: then what holds the place counts.
    """
    found = []
    for each in before:
        mountpoint, _, flags = each.rpartition(" ") if each.rpartition(" ")[2] in _COMBINED else (each, "", "")
        holder = blockfs.holding(now, mountpoint)
        has = holder.options if holder is not None else ()
        if any(flag not in has for flag in flags.split(",") if flag):
            found.append(each)
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


def mounts(pid: int, root: Path = Path("/")) -> tuple[Mount, ...]:
    """As the process sees them."""
    return blockfs.mounts(root, str(pid))

"""Which of this host's files go into its rehearsal: the root file system, those mounted below it, and what is left out.

Pure: mounts in, a view out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kupgrade.kernel.blockfs import Mount

# Files on this host's own disks.
ON_DISK = frozenset(("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "vfat", "xfs", "zfs"))
# Made by the kernel or in memory: every boot makes them anew.
PSEUDO = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs", "rpc_pipefs", "securityfs", "selinuxfs"),
        *("sysfs", "tmpfs", "tracefs"),
    )
)
# Directories whose content is made anew by every boot, is the host's own history, or is large and of no use there.
EMPTY = (
    *("/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp", "/lost+found", "/var/lib/kupgrade"),  # noqa: S108
    *(
        "/var/cache/apt/archives",
        "/var/lib/apt/lists",
        "/var/cache/dnf",
        "/var/cache/pacman/pkg",
        "/var/cache/kupgrade",
    ),
    *("/var/log/journal", "/var/crash", "/var/lib/systemd/coredump"),
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something of this host that its rehearsal has not."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class View:
    """`mounted`: mount points besides the root whose files go along, parents first.

    `empty`: directories without what is in them; `files`: those that stay away.
    """

    root_type: str
    mounted: tuple[str, ...]
    empty: tuple[str, ...]
    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def view(mounts: Sequence[Mount], wished_out: Iterable[str] = (), scratch: str = "", swaps: Iterable[str] = ()) -> View:
    """What of these mounts goes along.

    `wished_out`: directories that the operator does not want there; `scratch`: where the copy is made; `swaps`: files.
    """
    wished = tuple(path.rstrip("/") for path in wished_out)
    empty = (*EMPTY, *wished, *((scratch.rstrip("/"),) if scratch else ()))
    tops = {mount.mountpoint: mount for mount in mounts}  # of several on one mount point the last is on top
    chosen: list[Mount] = [tops["/"]]
    left: list[LeftOut] = [LeftOut(path, "it was not wanted") for path in wished]
    for point in sorted(tops):
        mount = tops[point]
        if point == "/" or _below(point, empty):
            continue
        twin = next((each for each in chosen if _shows(each, mount)), None)
        if twin is not None:
            left.append(LeftOut(point, f"the same files as below {twin.mountpoint}"))
        elif mount.fstype in ON_DISK:
            chosen.append(mount)
        elif mount.fstype not in PSEUDO:
            left.append(LeftOut(point, f"a file system of the type {mount.fstype} from {mount.source}"))
    swapped = tuple(path for path in swaps if path.startswith("/") and not path.startswith("/dev/"))
    points = tuple(mount.mountpoint for mount in chosen[1:])
    return View(chosen[0].fstype, points, empty, swapped, tuple(left))


def _below(point: str, directories: Iterable[str]) -> bool:
    return any(f"{point}/".startswith(f"{directory}/") for directory in directories)


def _shows(wider: Mount, narrower: Mount) -> bool:
    """Whether all that the second mount shows is seen below the first one, too: a bind mount."""
    if wider.device != narrower.device:
        return False
    return f"{narrower.subroot.rstrip('/')}/".startswith(f"{wider.subroot.rstrip('/')}/")


def patterns(found: View) -> tuple[str, ...]:
    """For tar and du, run at the top of the view: what stays away."""
    return (*(f".{_plain(path)}/*" for path in found.empty), *(f".{_plain(path)}" for path in found.files))


def _plain(path: str) -> str:
    """Without a meaning for those who read patterns."""
    return "".join(f"\\{char}" if char in "*?[\\" else char for char in path)


def fstab(text: str, uuid: str) -> str:
    """The guest's: its only disk, and file systems in memory as this host's fstab has them."""
    lines = [f"UUID={uuid} / ext4 defaults 0 0"]
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and not line.lstrip().startswith("#") and words[2] == "tmpfs":
            lines.append(line.strip())
    return "\n".join(lines) + "\n"

"""Facts of what surrounds a workload's processes: namespaces of its unit, files in memory, System V objects."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.host import volatile
from kupgrade.host.systemd import Unit
from kupgrade.kernel import blockfs, mount_layout, namespaces, process, sysvipc
from kupgrade.kernel.blockfs import Mount
from kupgrade.kernel.process import Fd, FdKind, Mapping
from kupgrade.model.facts import SandboxFacts
from kupgrade.model.workload import Carried

MADE_AGAIN = ("mnt", "uts")  # namespaces that systemd makes for the start of a unit, and criu is run inside of
IN_MEMORY = ("tmpfs", "ramfs")
SHARED = "/dev/shm"  # noqa: S108  # where shared memory has names
# Directories that every boot has: what is in them may be somebody else's, so they are carried by no service.
_EVERYBODYS = ("/", "/run", "/run/lock", SHARED, "/tmp", "/var/tmp", "/dev")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Around:
    """What is asked of: a workload's main process, the users that its processes run as, and its unit, if it has one."""

    root_pid: int
    uids: frozenset[int]
    unit: Unit | None
    root: Path

    @property
    def own(self) -> tuple[str, ...]:
        """Kinds of namespaces that are not the host's."""
        return process.foreign_namespaces(self.root_pid, self.root)

    @property
    def view(self) -> Path:
        """What it sees as its root."""
        return self.root / "proc" / str(self.root_pid) / "root"

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """As it sees them."""
        return namespaces.mounts(self.root_pid, self.root)


def sandbox_facts(around: Around, carried: Sequence[Carried]) -> SandboxFacts:
    """Of one workload. Raises KernelError."""
    unit = around.unit
    kinds = tuple(kind for kind in MADE_AGAIN if kind in around.own) if unit else ()
    objects = [each for each in sysvipc.objects(around.root) if each.kind != "shm" and each.belongs(around.uids)]
    return SandboxFacts(
        kinds=kinds,
        own_root=unit.own_root if unit else "",
        dynamic_user=bool(unit and unit.dynamic_user),
        denies_write_execute=bool(unit and unit.denies_write_execute),
        ipc_objects=tuple(f"{each.kind} {each.id}" for each in objects),
        carried_bytes=volatile.size(around.view, carried),
        unmade=_unmade(around, unit) if unit and "mnt" in kinds else (),
    )


def _unmade(around: Around, unit: Unit) -> tuple[str, ...]:
    return mount_layout.unmakeable(around.mounts, blockfs.mounts(around.root, "1"), f"/run/credentials/{unit.name}")


def carried(around: Around, sockets: Iterable[str]) -> tuple[Carried, ...]:
    """The files and directories in memory that are the workload's own; `sockets`: paths that it has bound.

    Its PID file and run-time directories; beside its sockets what belongs to its users (locks, more PID files), as in
    /dev/shm; private temporary directories, which another start gets anew wherever they lie.
    """
    mounts = around.mounts
    found: list[Carried] = []
    users = tuple(sorted(around.uids - {0}))
    if around.unit is not None:
        own = [around.unit.pidfile, *(f"/run/{name}" for name in around.unit.runtime_directories)]
        found += [Carried(path) for each in own if each and (path := _real(around, each)) and _in_memory(mounts, path)]
    folders = {_real(around, str(Path(path).parent)) for path in sockets if path.startswith("/")}
    if users:
        found += [
            Carried(each, users) for each in sorted(folders) if each not in _EVERYBODYS and _in_memory(mounts, each)
        ]
        found.append(Carried(SHARED, users))
    if "mnt" in around.own:
        private = namespaces.private_directories(mounts)
        ours = blockfs.mounts(around.root)
        found += [Carried(each) for each in dict.fromkeys((*private, *namespaces.memory_mounts(mounts, ours)))]
    return tuple(found)


def _real(around: Around, path: str) -> str:
    """Without links; as the host sees it, for a link that leads from the root would lead from ours otherwise."""
    return os.path.realpath(around.root / path.lstrip("/")) if str(around.root) == "/" else path


def _in_memory(mounts: tuple[Mount, ...], path: str) -> bool:
    mount = blockfs.holding(mounts, path)
    return mount is not None and mount.fstype in IN_MEMORY


def left_behind(around: Around, carried: Sequence[Carried], devices: Collection[str], fd: Fd) -> bool:
    """Whether an open, named file is in memory (on one of `devices`, major:minor) and does not go along."""
    if fd.kind not in (FdKind.FILE, FdKind.DIRECTORY, FdKind.FIFO):
        return False
    if f"{os.major(fd.device)}:{os.minor(fd.device)}" not in devices:
        return False
    return not _goes_along(around, carried, fd.name)


def mappings_left_behind(
    around: Around, carried: Sequence[Carried], devices: Collection[str], maps: Iterable[Mapping]
) -> tuple[str, ...]:
    """The same of mapped files."""
    found = set()
    for each in maps:
        if not each.path.startswith("/") or each.deleted or each.path in found:
            continue
        if _device(each) in devices and not _goes_along(around, carried, each.path):
            found.add(each.path)
    return tuple(sorted(found))


def unnamed_huge_pages(around: Around, devices: Collection[str], maps: Iterable[Mapping]) -> bool:
    """Whether a file on hugetlbfs (one of `devices`, in memory) that has no name any more is mapped.

    What has no mount (memfd, System V) is none of them: criu keeps that.
    """
    unnamed = {device for each in maps if each.deleted and (device := _device(each)) in devices}
    return bool(unnamed) and any(m.device in unnamed for m in around.mounts if m.fstype == "hugetlbfs")


def _device(mapping: Mapping) -> str:
    """As mountinfo writes it, in decimal."""
    major, _, minor = mapping.device.partition(":")
    return f"{int(major, 16)}:{int(minor, 16)}"


def _goes_along(around: Around, carried: Sequence[Carried], path: str) -> bool:
    if path in _EVERYBODYS:
        return True
    for each in carried:
        if path == each.path or path.startswith(each.path.rstrip("/") + "/"):
            if not each.uids:
                return True
            try:
                owner = (around.view / path.lstrip("/")).lstat().st_uid
            except OSError:
                return False
            return owner in each.uids or path == each.path
    return False


def volatile_devices(around: Around) -> frozenset[str]:
    """The file systems in memory that it sees, as major:minor; huge pages among them."""
    return frozenset(m.device for m in around.mounts if m.fstype in (*IN_MEMORY, "hugetlbfs"))

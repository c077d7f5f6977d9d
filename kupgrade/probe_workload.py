"""Facts of one workload: its tree, what its processes hold, and where its connections lead."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kupgrade import probe_sandbox
from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host import journal_streams, stopping
from kupgrade.host.systemd import Systemd
from kupgrade.kernel import blockfs, cgroup, cgroup_tree, namespaces, proc, process, sock_diag, sockets
from kupgrade.kernel.process import FdKind
from kupgrade.model.facts import CgroupFacts, Descriptor, ProcessFacts, StopFacts, WorkloadFacts
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.workload import Carried, Fate, Workload
from kupgrade.probe_sandbox import Around, left_behind

T = TypeVar("T")
JOURNAL_SOCKETS = ("/run/systemd/journal/stdout", "/run/systemd/journal/socket", "/run/systemd/journal/dev-log")

NOT_UNIFIED = "process {} is not in {} of the unified hierarchy (cgroup v2)"

_LOOKS = 4
# File systems that PID 1 mounts itself, before any unit.
_ALWAYS_THERE = ("proc", "sysfs", "devtmpfs", "devpts", "cgroup2", "tmpfs", "mqueue", "securityfs")


def observe_workload(entry: WorkloadPolicy, policy: Policy, systemd: Systemd, root: Path) -> WorkloadFacts:
    """Everything about one workload; `absent` says why when it does not run. Raises KupgradeError.

    A server may have a process for each connection: one that ends meanwhile is left out. When the main process has,
    all is looked at again.
    """
    if entry.fate is Fate.STOP:
        return _observe_stop(entry)
    for _ in range(_LOOKS - 1):
        try:
            return _observe(entry, policy, systemd, root)
        except KernelError as error:
            if error.errno not in proc.GONE:
                raise
    return _observe(entry, policy, systemd, root)


def _observe_stop(entry: WorkloadPolicy) -> WorkloadFacts:
    """Nothing of what it is made of matters: only whether it can be stopped, and what goes with it."""
    own, *others = stopping.with_company([entry.unit])
    absent = "" if own.up else f"{entry.unit} is {own.active}"
    facts = StopFacts(own.up, own.why_not, tuple(each.name for each in others if each.up))
    return WorkloadFacts(entry.name, entry.unit, None, absent, stop=facts)


@dataclass(frozen=True, slots=True)
class _Look:
    """All that was seen at once, of which the facts of each process are made. `own`: inodes of the tree's sockets."""

    around: Around
    carried: tuple[Carried, ...]
    volatile: frozenset[str]
    own: set[int]
    peers: Mapping[int, sock_diag.UnixPeer]
    tree: set[int]
    held: Mapping[int, tuple[process.Fd, ...]]
    maps: Mapping[int, tuple[process.Mapping, ...]]

    def facts_of(self, seen: proc.Process) -> ProcessFacts:
        """Raises KernelError."""
        pid, around, maps = seen.pid, self.around, self.maps[seen.pid]
        plain = ProcessFacts(
            pid=pid,
            comm=seen.comm,
            root=pid == around.root_pid,
            below_root=pid in self.tree,
            session_leader=seen.session == pid,
            traced_by=seen.tracer,
        )
        if _ended(seen):
            return plain  # its namespaces are listed, and lead nowhere
        return dataclasses.replace(
            plain,
            descriptors=tuple(self._descriptor(fd) for fd in self.held[pid]),
            device_mappings=tuple(sorted({m.path for m in maps if m.is_device})),
            hugetlb=any(m.is_hugetlb for m in maps) or probe_sandbox.unnamed_huge_pages(around, self.volatile, maps),
            namespaces=process.foreign_namespaces(pid, around.root),
            tty=seen.tty != 0,
            volatile_mappings=probe_sandbox.mappings_left_behind(around, self.carried, self.volatile, maps),
            apart=process.differing_namespaces(pid, around.root_pid, around.root),
            same_ids=namespaces.keeps_ids(pid, around.root),
            powerless=namespaces.credentials(pid, around.root).powerless,
        )

    def _descriptor(self, fd: process.Fd) -> Descriptor:
        peer = ""
        if fd.kind is FdKind.SOCKET and fd.inode in self.peers:
            other = self.peers[fd.inode].peer
            if not other:
                peer = "none"
            elif other in self.own:
                peer = "tree"
            else:
                path = self.peers[other].path if other in self.peers else ""
                peer = "journal" if path in JOURNAL_SOCKETS else "outside"
        lost = left_behind(self.around, self.carried, self.volatile, fd)
        return Descriptor(fd.number, fd.kind.value, fd.name, fd.protocol, peer, lost)


def _observe(entry: WorkloadPolicy, policy: Policy, systemd: Systemd, root: Path) -> WorkloadFacts:
    place = _place(entry, systemd, root)
    if isinstance(place, str):
        return WorkloadFacts(entry.name, entry.unit, None, place)
    root_pid, path, unit = place
    everybody = proc.processes(root)
    members = proc.in_cgroup(everybody, path)
    if not entry.unit and entry.pidfile:
        members = proc.descendants(everybody, root_pid)
    if all(p.pid != root_pid for p in members):
        return WorkloadFacts(entry.name, entry.unit, None, NOT_UNIFIED.format(root_pid, path or "any cgroup"))
    tree = {p.pid for p in proc.descendants(everybody, root_pid)}
    table = sockets.by_inode(root_pid, root)
    held = _of_each(members, root_pid, root, lambda p: process.fds(p.pid, root))
    inodes = {fd.inode for fds in held.values() for fd in fds if fd.kind is process.FdKind.SOCKET}
    peers = _unix_peers()
    inet = [s for i in inodes if isinstance(s := table.get(i), sockets.InetSocket)]
    mounts = blockfs.mounts(root)
    around = Around(root_pid, frozenset(p.uid for p in members), systemd.show(unit) if unit else None, root)
    carried = probe_sandbox.carried(around, [peers[i].path for i in inodes if i in peers])
    maps = _of_each(members, root_pid, root, lambda p: process.mappings(p.pid, root))
    look = _Look(around, carried, probe_sandbox.volatile_devices(around), inodes, peers, tree, held, maps)
    facts = _of_each((p for p in members if p.pid in held and p.pid in maps), root_pid, root, look.facts_of)
    memory = _of_each((p for p in members if p.pid in facts), root_pid, root, lambda p: process.memory(p.pid, root))
    members, sizes = tuple(p for p in members if p.pid in memory), memory.values()
    sandbox = probe_sandbox.sandbox_facts(around, carried)
    workload = Workload(
        name=entry.name,
        unit=unit,
        cgroup=path,
        root_pid=root_pid,
        pids=tuple(sorted(p.pid for p in members)),
        tcp_ports=_ports(inet, "tcp"),
        udp_ports=_ports(inet, "udp"),
        probe=entry.probe,
        max_blackout=policy.limit(entry),
        pidfile=entry.pidfile,
        sandbox=sandbox.kinds,
        user_namespace="user" in around.own,
        shared_memory="ipc" not in around.own
        and any(m.path.startswith("/SYSV") for each in maps.values() for m in each),
        carried=carried,
        watchdog=around.unit.watchdog if around.unit else 0.0,
    )
    return WorkloadFacts(
        name=entry.name,
        unit=unit,
        workload=workload,
        processes=tuple(facts[p.pid] for p in members),
        anonymous_bytes=sum(m.anonymous + m.swap for m in sizes),
        shared_bytes=sum(m.shmem for m in sizes) + sandbox.carried_bytes,
        connections=len(_established(inet)),
        local_peers=_local_peers(_established(inet), inet),
        elsewhere=_elsewhere(look, [p.pid for p in members if not _ended(p)], mounts),
        confined=_confined(workload.pids, root),
        own_clock="time" in around.own,
        sandbox=sandbox,
        after=around.unit.after if around.unit else (),
        cgroups=_cgroups(path, members, root),
    )


def _of_each(
    members: Iterable[proc.Process], root_pid: int, root: Path, ask: Callable[[proc.Process], T]
) -> dict[int, T]:
    """The answers by PID, without those that ended meanwhile. Raises KernelError, also when the main process ended."""
    found = {}
    for each in members:
        try:
            found[each.pid] = ask(each)
        except KernelError as error:
            if each.pid == root_pid or error.errno not in proc.GONE or _lives(each, root):
                raise
    return found


def _lives(seen: proc.Process, root: Path) -> bool:
    try:
        now = proc.process(seen.pid, root)
    except KernelError as error:
        if error.errno not in proc.GONE:
            raise
        return False
    return now.starttime == seen.starttime and not _ended(now)


def _ended(seen: proc.Process) -> bool:
    """Whether it is but to be reaped, which criu keeps. One whose threads live on is none that it could dump."""
    return seen.state == "Z" and seen.nthreads < 2


def _cgroups(path: str, members: Iterable[proc.Process], root: Path) -> tuple[CgroupFacts, ...]:
    """Those below the workload's own, and those elsewhere in which one of its processes is."""
    below = {each.pid for each in proc.in_cgroup(members, path)}
    elsewhere = [CgroupFacts(each.cgroup, (each.pid,)) for each in members if each.pid not in below]
    found = cgroup_tree.uses(path, root) if path != "/" and cgroup.exists(path, root) else ()
    return (*(CgroupFacts(use.path, use.pids, use.controllers, use.kind, use.frozen) for use in found), *elsewhere)


def _place(entry: WorkloadPolicy, systemd: Systemd, root: Path) -> tuple[int, str, str] | str:
    """Root process, cgroup and unit; or why there is none."""
    if entry.unit:
        unit = systemd.show(entry.unit)
        if not unit.loaded:
            return f"systemd does not know {entry.unit}"
        if unit.active != "active" or not unit.main_pid:
            return f"{entry.unit} is {unit.active} ({unit.sub})"
        return unit.main_pid, unit.cgroup, entry.unit
    if entry.pidfile:
        path = root / entry.pidfile.lstrip("/")
        try:
            pid = int(path.read_text().split()[0])
            return pid, proc.process(pid, root).cgroup, ""
        except (OSError, ValueError, IndexError) as error:
            return f"{entry.pidfile} names no process: {error}"
        except KernelError:
            return f"{entry.pidfile} names a process that is gone"
    pids = cgroup.members(entry.cgroup, root)
    if not pids:
        return f"no process is in {entry.cgroup}"
    leaders = [p.pid for p in proc.processes(root) if p.pid in pids and p.ppid not in pids]
    if len(leaders) != 1:
        raise KupgradeError(f"{entry.cgroup} holds {len(leaders)} process trees", "one is needed", "Name a pidfile")
    return leaders[0], entry.cgroup, ""


def _unix_peers() -> dict[int, sock_diag.UnixPeer]:
    """All unix sockets; streams that journald took over, not accepted, get the path of those that it accepts."""
    with sock_diag.connect() as diag:
        peers = sock_diag.unix_peers(diag)
    for inode in journal_streams.held_inodes() & peers.keys():
        if not peers[inode].path:
            peers[inode] = dataclasses.replace(peers[inode], path=JOURNAL_SOCKETS[0])
    return peers


def _elsewhere(look: _Look, pids: Iterable[int], mounts: tuple[blockfs.Mount, ...]) -> tuple[str, ...]:
    """Mount points, other than the root's, on block devices or the network, of files in use."""
    paths = {fd.name for fds in look.held.values() for fd in fds if fd.kind in (FdKind.FILE, FdKind.DIRECTORY)}
    for pid in pids:
        paths |= {m.path for m in look.maps[pid] if m.path.startswith("/") and not m.deleted}
        try:
            paths.add(str((look.around.root / "proc" / str(pid) / "cwd").readlink()))
        except OSError as error:
            if error.errno not in proc.GONE:
                raise  # one that ended meanwhile uses nothing any more
    points = {m.mountpoint for m in mounts}
    # What is no mount point itself lies where its directory does: tens of thousands of files are few directories.
    places = {path if path in points else os.path.dirname(path) for path in paths}  # noqa: PTH120
    found = {m.mountpoint for path in places if (m := blockfs.holding(mounts, path)) is not None}
    kernel_made = {m.mountpoint for m in mounts if m.fstype in _ALWAYS_THERE}
    return tuple(sorted(found - kernel_made - {"/"}))


def _confined(pids: Iterable[int], root: Path) -> bool:
    """Whether a security module holds one of them in a profile."""
    for pid in pids:
        try:
            label = (root / "proc" / str(pid) / "attr" / "current").read_text().strip("\0\n ")
        except OSError:
            continue  # no security module
        if label and not label.startswith(("unconfined", "kernel")):
            return True
    return False


def _established(inet: Iterable[sockets.InetSocket]) -> list[sockets.InetSocket]:
    return [s for s in inet if s.state is sockets.TcpState.ESTABLISHED and s.protocol.startswith("tcp")]


def _ports(inet: Iterable[sockets.InetSocket], protocol: str) -> tuple[int, ...]:
    return tuple(sorted({s.local.port for s in inet if s.protocol.startswith(protocol) and s.local.port}))


def _local_peers(established: Iterable[sockets.InetSocket], own: Iterable[sockets.InetSocket]) -> tuple[str, ...]:
    """Established connections whose other end is on this host but not in the workload."""
    ends = {(s.local.address, s.local.port) for s in own}
    local = {s.local.address for s in own}
    return tuple(
        sorted(
            f"{s.remote.address} port {s.remote.port}"
            for s in established
            if (str(s.remote.address).startswith(("127.", "::1")) or s.remote.address in local)
            and (s.remote.address, s.remote.port) not in ends
        )
    )

"""Why a process cannot be kept, told per process: what criu cannot dump, and what is lost on the way."""

from __future__ import annotations

from kupgrade.core.cgroups import cgroup_obstacles
from kupgrade.core.sandbox import of_namespaces, sandbox_obstacles
from kupgrade.model.facts import Descriptor, ProcessFacts, SandboxFacts, WorkloadFacts
from kupgrade.model.workload import Obstacle

# Kinds of anonymous inodes that criu dumps (criu/anonymous inode handlers; all others are refused by it).
_ANON_KEPT = frozenset({"eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd", "pidfd", "userfaultfd"})
_SOCKETS_KEPT = ("TCP", "UDP", "UNIX", "NETLINK", "PACKET")
_DEVICES_KEPT = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_NAMESPACES_KEPT = frozenset({"time", "time_for_children", "ipc", "cgroup"})  # criu makes them again


def obstacles(facts: WorkloadFacts) -> tuple[Obstacle, ...]:
    """Everything that stands in the way of one workload; fatal ones first."""
    found = [o for process in facts.processes for o in _of_process(process, facts.sandbox)]
    found += sandbox_obstacles(facts)
    found += cgroup_obstacles(facts)
    if facts.workload is not None and not facts.own_clock:
        root = facts.workload.root_pid
        found.append(
            Obstacle(
                root,
                facts.name,
                "CLOCK_MONOTONIC jumps to the new kernel's uptime (no time namespace); timers keep what was left",
                fatal=False,
            )
        )
    found += [
        Obstacle(facts.workload.root_pid if facts.workload else 0, facts.name, f"loses its connection to {peer}", False)
        for peer in facts.local_peers
    ]
    return tuple(sorted(found, key=lambda o: (not o.fatal, o.pid)))


def _of_process(process: ProcessFacts, sandbox: SandboxFacts) -> list[Obstacle]:
    found: list[str] = []
    if process.traced_by:
        found.append(f"is traced by process {process.traced_by} (a debugger or strace): only one tracer is possible")
    if not process.below_root:
        found.append("is not a descendant of the workload's main process: criu dumps one tree")
    if process.root and not process.session_leader:
        found.append("is the root of the tree but not a session leader: start it with setsid or as a service")
    if process.tty:
        found.append("has a controlling terminal that stays behind")
    if process.hugetlb:
        found.append("maps hugetlb pages of a hugetlbfs mount")
    found += [f"maps the device {path}: its state is in the driver" for path in process.device_mappings]
    found += of_namespaces(process, sandbox, _NAMESPACES_KEPT)
    found += [
        f"maps {path}, which lies in memory (tmpfs) and ends with the kernel" for path in process.volatile_mappings
    ]
    found += [text for fd in process.descriptors if (text := _of_descriptor(fd))]
    return [Obstacle(process.pid, process.comm, text) for text in found]


def _of_descriptor(fd: Descriptor) -> str:
    where = f"descriptor {fd.number}"
    if fd.volatile:
        return f"has {fd.name} open ({where}), which lies in memory (tmpfs) and ends with the kernel"
    match fd.kind:
        case "anon_inode":
            return "" if _anon_kept(fd.name) else _anon_reason(fd.name, where)
        case "socket":
            return _of_socket(fd, where)
        case "device":
            kept = fd.name in _DEVICES_KEPT or fd.name.startswith("/dev/pts/")
            return "" if kept else f"has the device {fd.name} open ({where})"
        case "unknown":
            return f"holds {fd.name} ({where}), whose kind is unknown"
    return ""


def _anon_kept(name: str) -> bool:
    return name in _ANON_KEPT or name.startswith("bpf-map")


def _anon_reason(name: str, where: str) -> str:
    if name == "io_uring":
        return f"uses io_uring ({where}), which criu cannot dump"
    return f"holds an anonymous inode of kind {name} ({where}), which criu cannot dump"


def _of_socket(fd: Descriptor, where: str) -> str:
    if fd.protocol and not fd.protocol.upper().startswith(_SOCKETS_KEPT):
        return f"has a {fd.protocol} socket ({where}), which criu cannot dump"
    if fd.protocol.upper().startswith(("MPTCP", "UDPLITE", "UDP-LITE")):
        return f"has a {fd.protocol} socket ({where}), which criu cannot dump"
    if fd.peer == "outside":
        return f"has a unix connection to a process outside the workload ({where})"
    return ""

"""Workloads: what is kept over an upgrade, how it is found, and what stands in the way."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fate(enum.Enum):
    """What happens to a workload."""

    KEEP = "keep"  # checkpointed and restored; an obstacle is a refusal
    RESTART = "restart"  # stopped with all that is not kept; whether it starts again is up to the next boot
    STOP = "stop"  # stopped first of all, in its time; started again by kupgrade when the kept ones serve
    REFUSE = "refuse"  # its presence forbids the upgrade


class ProbeKind(enum.Enum):
    """How a workload's health is asked."""

    NONE = "none"
    COMMAND = "command"  # exit status 0 is healthy
    TCP = "tcp"  # a connection to 127.0.0.1 or ::1 is accepted
    HTTP = "http"  # GET answers 2xx or 3xx


@dataclass(frozen=True, slots=True)
class Probe:
    """A health probe. `timeout`: seconds for all tries together."""

    kind: ProbeKind = ProbeKind.NONE
    port: int = 0
    path: str = "/"
    command: tuple[str, ...] = ()
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Carried:
    """A file, or a directory with all below it, that is in memory and goes with the images.

    `path`: as the workload sees it. `uids`: of a directory that others use, too, only what belongs to these users.
    """

    path: str
    uids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload as the plan names it.

    `unit` is the systemd service (empty for a bare process tree); `cgroup` its path below /sys/fs/cgroup;
    `root_pid` the root of the process tree; `pids` every process when it was planned, some of which may end and others
    begin until it is frozen; ports are local ports of its sockets. `sandbox`: kinds of namespaces that systemd makes
    for the unit, and into which it is restored; `user_namespace`: it has one, which it leaves; `shared_memory`: it has
    System V segments attached, in the host's IPC namespace. `watchdog`: seconds after which the unit is killed when
    its main process has said nothing (WatchdogSec=); 0: never.
    """

    name: str
    unit: str
    cgroup: str
    root_pid: int
    pids: tuple[int, ...]
    tcp_ports: tuple[int, ...] = ()
    udp_ports: tuple[int, ...] = ()
    probe: Probe = Probe()
    max_blackout: float | None = None
    pidfile: str = ""
    sandbox: tuple[str, ...] = ()
    user_namespace: bool = False
    shared_memory: bool = False
    carried: tuple[Carried, ...] = ()
    watchdog: float = 0.0


@dataclass(frozen=True, slots=True)
class Watched:
    """A unit that is watched, and the seconds after which it is killed when nothing was heard of it."""

    unit: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StopOrder:
    """A unit that stands still over the crossing, and the seconds in which it has to have stopped."""

    unit: str
    timeout: float


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why one process cannot be kept as it is. `fatal`: criu cannot dump it; else something is lost."""

    pid: int
    comm: str
    what: str
    fatal: bool = True


class StoreKind(enum.Enum):
    """Where checkpoint images are kept over the crossing."""

    DISK = "disk"
    PMEM = "pmem"  # legacy persistent memory, memmap=SIZE!ADDR: survives kexec, panic and reset
    LUO = "luo"  # memory that a kernel hands to the next one (KHO): survives a kexec, and nothing else
    WINDOW = "window"  # each kernel's own memory, shipped through the window both see: gone with a restart


@dataclass(frozen=True, slots=True)
class Store:
    """An image store: `path` is the directory of one upgrade's images; `device` is empty for a directory on disk."""

    kind: StoreKind
    path: str
    device: str = ""
    mountpoint: str = ""

    @property
    def in_memory(self) -> bool:
        """Whether the images are files in memory (tmpfs)."""
        return self.kind in (StoreKind.WINDOW, StoreKind.LUO)


@dataclass(frozen=True, slots=True)
class FileState:
    """A regular file that a workload has open for writing: enough to take appended bytes back."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    append_only: bool

"""Facts: everything observed once, with a digest. UNKNOWN is a value, with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from kupgrade.errors import KupgradeError
from kupgrade.model.descriptors import DescriptorStore
from kupgrade.model.erratum import Erratum, PlatformFacts
from kupgrade.model.hook import Hook, HookFault
from kupgrade.model.kho import KhoFacts
from kupgrade.model.spawn_facts import SpawnFacts
from kupgrade.model.workload import Workload

T = TypeVar("T")


class Unknowns(dict[str, str]):
    """Facts that could not be determined, with the reason."""

    def ask(self, name: str, question: Callable[[], T], otherwise: T) -> T:
        """The answer, or `otherwise` with the reason recorded."""
        try:
            return question()
        except (KupgradeError, OSError, ValueError) as error:
            self[name] = str(error)
            return otherwise


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One open descriptor of a process, as far as keeping it matters.

    `kind` as kernel/process.py's FdKind value; `name` a path or kind of anonymous inode; `protocol` of a socket;
    `peer` says where a unix stream leads: tree, journal, outside, none.
    """

    number: int
    kind: str
    name: str
    protocol: str = ""
    peer: str = ""
    volatile: bool = False  # a named file on a file system that ends with the kernel (tmpfs)


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """One process of a workload. `root`: the tree's root; `below_root`: descends from it."""

    pid: int
    comm: str
    root: bool
    below_root: bool
    session_leader: bool
    traced_by: int
    descriptors: tuple[Descriptor, ...] = ()
    device_mappings: tuple[str, ...] = ()
    hugetlb: bool = False
    namespaces: tuple[str, ...] = ()  # kinds not shared with PID 1
    tty: bool = False
    ipc: tuple[str, ...] = ()
    volatile_mappings: tuple[str, ...] = ()  # files in memory that are mapped and are not carried over
    apart: tuple[str, ...] = ()  # kinds of namespaces that it does not share with the workload's main process
    same_ids: bool = True  # its user and group have the same numbers in its user namespace as outside
    powerless: bool = True  # no capability in its user namespace, nor a way to one


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """A cgroup of a workload's processes below its own; with a path from / on: one elsewhere.

    `controllers`: applied to it by the one above; `kind`: cgroup.type; `frozen`: somebody has frozen it.
    """

    path: str
    pids: tuple[int, ...] = ()
    controllers: tuple[str, ...] = ()
    kind: str = "domain"
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """What a unit makes for its service that another process tree has not (systemd.exec(5))."""

    kinds: tuple[str, ...] = ()  # of namespaces that are made again, and restored into
    own_root: str = ""  # another root directory
    dynamic_user: bool = False
    denies_write_execute: bool = False  # MemoryDenyWriteExecute=
    ipc_objects: tuple[str, ...] = ()  # System V semaphores and message queues of its users, e.g. sem 3
    carried_bytes: int = 0  # of files in memory that go with the images
    unmade: tuple[str, ...] = ()  # mounts that only systemd can make again


@dataclass(frozen=True, slots=True)
class StopFacts:
    """Of a unit that is to be stopped and started again: whether it runs, and unless empty why that cannot be.

    `along`: units that run now and stop with it, or that could start it (timers, sockets, paths).
    """

    runs: bool
    why_not: str = ""
    along: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """One workload of the policy as it is now. `workload` is None when it does not run; `absent` says why.

    `stop` is there for one of fate stop, of which nothing else is asked.
    """

    name: str
    unit: str
    workload: Workload | None
    absent: str = ""
    processes: tuple[ProcessFacts, ...] = ()
    anonymous_bytes: int = 0
    shared_bytes: int = 0
    connections: int = 0
    local_peers: tuple[str, ...] = ()  # connections to processes of this host outside the workload
    elsewhere: tuple[str, ...] = ()  # mount points, other than the root's, of files that its processes use
    confined: bool = False  # a security profile that must be loaded before it is restored
    own_clock: bool = False  # has a time namespace, so CLOCK_MONOTONIC can go on
    sandbox: SandboxFacts = SandboxFacts()
    after: tuple[str, ...] = ()  # units that its own names in After=
    cgroups: tuple[CgroupFacts, ...] = ()
    stop: StopFacts | None = None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """Room for images, in bytes; None: unknown."""

    disk_path: str
    disk_free: int | None
    pmem_device: str
    pmem_size: int | None  # None: no such device
    pmem_why: str = ""
    memory_available: int | None = None
    disk_rate: float | None = None  # bytes a second read from the disk that holds disk_path


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read. `unknown`: fact name -> reason why it could not be determined."""

    boot_id: str
    release: str
    architecture: str
    cmdline: str
    root_user: bool
    systemd: bool
    kexec_loaded: bool | None
    kexec_disabled: bool | None
    lockdown: str
    criu_version: tuple[int, ...] | None
    criu_check: str  # empty: looks good
    nft: bool
    panic_timeout: int
    pid_max: int
    highest_kernel_thread: int
    memory_bytes: int
    watchdog: str  # empty: none that survives a kexec; else its name
    watchdog_why: str
    boot_loader: str
    boot_default: str  # empty: unknown
    stores: StoreFacts
    workloads: tuple[WorkloadFacts, ...]
    active_services: tuple[str, ...]
    needed_services: tuple[str, ...]
    boot_seconds: float = 0.0  # from the kernel's start to user space of the root file system, in this boot
    lateness: float = 1.0  # how many times longer than predicted earlier upgrades took here
    checksum_rate: float = 1e9  # bytes per second of CRC-32 here: the yardstick for predictions
    early_agent: bool = False  # everything a restore needs lies on the root file system: no other unit must come first
    boot_once: str = ""  # what the boot loader takes for the next cold start alone, instead of the default
    missing_units: tuple[str, ...] = ()  # of kupgrade's own that an upgrade needs
    unknown: Mapping[str, str] = field(default_factory=dict)
    spawn: SpawnFacts | None = None  # None: not asked
    kho: KhoFacts | None = None  # None: not asked
    hooks: tuple[Hook, ...] = ()  # in the order of their calls
    hook_faults: tuple[HookFault, ...] = ()
    errata: tuple[Erratum, ...] = ()  # known problems, read with the facts that they are matched against
    platform: PlatformFacts | None = None  # None: not asked
    descriptor_stores: tuple[DescriptorStore, ...] = ()  # of services that the policy preserves or keeps
    reboot_packages: tuple[str, ...] = ()  # who asks for a restart (/run/reboot-required.pkgs)

    @property
    def values(self) -> Mapping[str, str]:
        """The facts a stored plan rests on, by name: when one differs, the plan is stale."""
        found = {
            "boot ID": self.boot_id,
            "kernel release": self.release,
            "command line": self.cmdline,
            "criu version": ".".join(map(str, self.criu_version or ())),
            "kexec disabled": str(self.kexec_disabled),
            "kexec image loaded": str(self.kexec_loaded),
            "lockdown": self.lockdown,
            "persistent memory": f"{self.stores.pmem_device} {self.stores.pmem_size}",
        }
        if self.kho is not None:
            found["live update"] = str(self.kho.device_there)
        if self.hooks:
            found["hooks"] = " ".join(f"{h.path}:{h.digest[:16]}{h.undo_digest[:16]}" for h in self.hooks)
        for entry in self.workloads:
            root = "" if entry.workload is None else str(entry.workload.root_pid)
            found[f"main process of {entry.name}"] = root  # others begin and end with what it has to do
        return {**found, **(self.spawn.values if self.spawn else {})}

    @property
    def digest(self) -> str:
        """SHA-256 over `values`."""
        return hashlib.sha256(json.dumps(dict(self.values), sort_keys=True).encode()).hexdigest()

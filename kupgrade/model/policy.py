"""Policy: what an upgrade may do. Words and defaults only; reading files is `kupgrade.policy`'s trade."""

from __future__ import annotations

import enum
import fnmatch
import math
import re
from dataclasses import dataclass, field

from kupgrade.errors import BadInputError
from kupgrade.model.descriptors import PreservePolicy
from kupgrade.model.schedule import Automation, Window
from kupgrade.model.workload import Fate, Probe, StoreKind

# systemd.time(7), "Parsing time spans".
_UNITS = {
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec"), 1e-3),
    **dict.fromkeys(("us", "µs", "usec"), 1e-6),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
    **dict.fromkeys(("month", "months"), 2629800.0),
    **dict.fromkeys(("y", "year", "years"), 31557600.0),
}
_TERM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zµ]*)\s*")


def seconds(text: str) -> float:
    """A systemd time span ("500ms", "1min 30s", "1h30m", "20") as seconds; raises BadInputError."""
    total, end = 0.0, 0
    while match := _TERM.match(text, end):
        if match[2] not in _UNITS:
            break
        total += float(match[1]) * _UNITS[match[2]]
        end = match.end()
    if not text.strip() or end != len(text) or not math.isfinite(total):
        raise BadInputError(f"{text!r:.40} is not a time span", "", 'Write "30s", "500ms" or "1min 30s"')
    return total


class OnUnknown(enum.Enum):
    """What a fact that could not be determined means."""

    WARN = "warn"
    REFUSE = "refuse"


class NetworkMode(enum.Enum):
    """Who brings the addresses up in the new kernel before the workloads are thawed."""

    EARLY = "early"  # kupgrade, before the network manager
    WAIT = "wait"  # the network manager; kupgrade waits for it


class MemoryMode(enum.Enum):
    """When restored workloads get their memory."""

    COPY = "copy"  # all of it before they run
    IN_PLACE = "in-place"  # what they touch at once, the rest while they run (userfaultfd)


@dataclass(frozen=True, slots=True)
class KexecOptions:
    """Options of the kexec engine. `network_timeout`: seconds."""

    stores: tuple[StoreKind, ...] = (StoreKind.LUO, StoreKind.PMEM, StoreKind.DISK)
    disk_path: str = "/var/lib/kupgrade/images"
    pmem_device: str = "/dev/pmem0"
    predump_rounds: int = 4
    network: NetworkMode = NetworkMode.EARLY
    network_timeout: float = 30.0
    cmdline_append: str = ""


class Concern(enum.Enum):
    """What the spawn engine warns of; a policy may forbid each by its name."""

    PANIC = "panic"  # a panic of the old kernel would stop the new one, too
    MACHINE = "machine"  # real hardware, or a virtual machine: what is not known of either
    INTERRUPTS = "interrupts"  # interrupt remapping in a virtual machine, or unknown
    SMT = "smt"  # threads of cores that are offline
    CPUS = "cpus"  # CPUs that cannot be given at the end
    ROOT_FSTYPE = "root-fstype"  # another file system than ext4
    MOUNTS = "mounts"  # file systems that are not carried over, read-only or for booting
    DRIVERS = "drivers"  # whether a driver lets its device go is only known when it is asked
    DEVICES = "devices"  # devices that stay behind
    NETWORK = "network"  # no interface carries an address
    MEMORY = "memory"  # nothing keeps memory movable, so it may not be had when asked for
    LOCKDOWN = "lockdown"  # its state is unknown
    UNKNOWN = "unknown"  # other facts that could not be determined


@dataclass(frozen=True, slots=True)
class SpawnOptions:
    """Options of the spawn engine; 0 stands for "computed". `memory`, `window`: bytes; times in seconds.

    `cores`: computed is half of the host's. `serial`: the number of the serial port for the new kernel's console (2 is
    ttyS1), 0 for none. `keep`: globs of root ports' PCI addresses that are never handed over. `retire`: the old kernel
    ends after the commit and leaves the rest of the machine.
    """

    cores: int = 0
    memory: int = 0
    window: int = 0
    serial: int = 0
    predump_rounds: int = 4
    hello_timeout: float = 60.0
    restore_deadline: float = 60.0
    cmdline_append: str = ""
    keep: tuple[str, ...] = ()
    retire: bool = True
    refuse_on: tuple[Concern, ...] = ()

    def keeps(self, port: str) -> bool:
        """Whether the root port with this PCI address must not be handed over."""
        return _matches(port, self.keep)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which engines, in order of preference; without `fallback` only the first is ever used."""

    order: tuple[str, ...] = ("kexec",)
    fallback: bool = False
    memory: MemoryMode = MemoryMode.COPY
    kexec: KexecOptions = KexecOptions()
    spawn: SpawnOptions = SpawnOptions()


@dataclass(frozen=True, slots=True)
class KernelRules:
    """Globs of kernel releases."""

    allow: tuple[str, ...] = ("*",)
    block: tuple[str, ...] = ()

    def permits(self, release: str) -> bool:
        """Whether an upgrade to `release` is allowed; a block beats an allow."""
        return _matches(release, self.allow) and not _matches(release, self.block)


@dataclass(frozen=True, slots=True)
class HookOptions:
    """Seconds that one hook may take, and one in the blackout."""

    timeout: float = 10.0
    blackout_timeout: float = 2.0


@dataclass(frozen=True, slots=True)
class ErrataOptions:
    """`ignore`: the IDs of known problems that are not taken for a no."""

    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """`textfile`: of node_exporter's textfile collector; empty for none, as when its directory is not there."""

    textfile: str = "/var/lib/prometheus/node-exporter/kupgrade.prom"


@dataclass(frozen=True, slots=True)
class WorkloadPolicy:
    """One workload; exactly one of `unit`, `pidfile`, `cgroup` is set. `max_blackout`, `stop_timeout`: seconds."""

    name: str
    unit: str = ""
    pidfile: str = ""
    cgroup: str = ""
    fate: Fate = Fate.KEEP
    max_blackout: float | None = None
    stop_timeout: float = 90.0  # as systemd's DefaultTimeoutStopSec=
    probe: Probe = field(default_factory=Probe)


# What the upgrade itself, the operator's session or the way to the disks needs until the very end.
KEEP_SERVICES = (
    "systemd-*",
    "dbus*",
    "kupgrade-*",
    "user@*",
    "user-runtime-dir@*",
    "getty@*",
    "serial-getty@*",
    "ssh*",
    "networking*",
    "ifup@*",
    "NetworkManager*",
    "wpa_supplicant*",
    "lvm2-*",
    "dm-event*",
    "multipathd*",
    "iscsid*",
    "open-iscsi*",
    "rpcbind*",
    "nfs-*",
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The merged policy. Times in seconds; `panic_timeout` is the crossing's kernel.panic.

    `soak`: how long the new kernel must have served before it becomes the boot default.
    """

    max_blackout: float | None = None
    deadline: float = 120.0
    panic_timeout: int = 5
    on_unknown: OnUnknown = OnUnknown.WARN
    stop_services: bool = True
    keep_services: tuple[str, ...] = KEEP_SERVICES
    engine: EngineOptions = EngineOptions()
    kernels: KernelRules = KernelRules()
    hooks: HookOptions = HookOptions()
    errata: ErrataOptions = ErrataOptions()
    metrics: MetricsOptions = MetricsOptions()
    workloads: tuple[WorkloadPolicy, ...] = ()
    preserve: tuple[PreservePolicy, ...] = ()
    soak: float = 0.0
    respect_inhibitors: bool = True
    windows: tuple[Window, ...] = ()
    automation: Automation = field(default_factory=Automation)

    def limit(self, workload: WorkloadPolicy) -> float | None:
        """The blackout limit of one workload in seconds: its own, else the default, else None."""
        return self.max_blackout if workload.max_blackout is None else workload.max_blackout

    def keeps_service(self, unit: str) -> bool:
        """Whether `unit` must not be stopped beforehand."""
        return _matches(unit, self.keep_services)


def _matches(text: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(text, glob) for glob in globs)

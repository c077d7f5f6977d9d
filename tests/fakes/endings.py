"""How a process or a boot of the modelled host ends, how the host behaves, and what is copied of a workload."""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.model.record import RecordKind

OLD_ENTRY, NEW_ENTRY = "entry-old", "entry-new"
REBOOT_ASKED = ("linux-image-7.3.4-amd64", "libc6")  # in /run/reboot-required.pkgs of the old kernel
ADMIN_PANIC = 3  # kernel.panic of every boot whose command line does not say otherwise
OPEN_INTENT = (RecordKind.STARTED, RecordKind.UNDO_STARTED, RecordKind.REENTERING)


class EndError(BaseException):
    """The tool or the kernel ends here: nothing may catch it, so it is no Exception."""


class Kill(EndError):
    """SIGKILL: the tool is gone, the kernel and everything in it goes on."""


class PowerCut(EndError):
    """The machine loses what is not on disk, and starts its default entry."""


class Crossed(EndError):
    """kexec: another kernel runs now."""


class Restarted(EndError):
    """An ordinary restart: firmware, boot loader, default entry."""


class Hung(EndError):
    """Nothing goes on in this kernel any more."""


@dataclass(frozen=True)
class Behaviour:
    """What this host and its new kernel are like."""

    name: str = "good"
    new_kernel: str = "good"  # panics, hangs
    restore_fails: tuple[str, ...] = ()  # in these boots: new, old
    probe_fails: bool = False
    back_kexec_fails: bool = False
    plain_boot_takes_pids: bool = False
    damaged_images: str = ""  # at once, later, a round
    gate_says_no: bool = False
    dump_fails: bool = False
    stop_hangs: bool = False  # a unit of fate stop does not end in its time
    thaw_failures: int = 0  # how often the thaw of restored copies fails before it works
    stored_default: str | None = OLD_ENTRY  # None: the boot loader takes the newest
    watchdog: bool = True
    sysctl_sets_panic: bool = False  # user space writes kernel.panic early in every boot
    foreign: str = ""  # release that the next plain boot runs, chosen by somebody else
    ticket_lost: bool = False
    store: str = "disk"
    drops_memory: bool = False  # the new kernel takes over no memory, whatever the old one hands it
    descriptors_die: bool = False  # the process that holds stored descriptors ends before the jump
    hook_says: str = ""  # "POINT: no" or "POINT: not now"
    in_place: bool = False  # memory is filled while the workloads run
    unplaceable: str = ""  # a page of it cannot be placed: before, after the commit
    hands_off: bool = False  # a person is the right answer


@dataclass
class Copy:
    """One process tree of a workload in the running kernel."""

    generation: int
    lineage: int
    frozen: bool = False
    stopped: bool = False
    adopted: bool = True

    @property
    def running(self) -> bool:
        return not (self.frozen or self.stopped)


@dataclass(frozen=True)
class Image:
    """A workload's memory on the store."""

    generation: int
    lineage: int


@dataclass(frozen=True)
class Loaded:
    """A kexec image."""

    kernel: str
    cmdline: str
    deadline: int | None  # of the early init; None: no early init

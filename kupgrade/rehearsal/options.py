"""What to rehearse, and how large a virtual host that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from kupgrade.rehearsal import kho_kernel, virtual_host
from kupgrade.rehearsal.faults import Fault

ENGINES = ("kexec", "spawn")
_LARGE = 2048  # MiB
_BLOCK = 128  # MiB; what memory is taken from a running kernel in


@dataclass(frozen=True, slots=True)
class Trial:
    """One upgrade of several in one life of the machine; `rollback`: as in Options."""

    fault: Fault | None = None
    rollback: str = ""

    def __str__(self) -> str:
        if self.fault is not None:
            return str(self.fault)
        return f"taken back at {self.rollback}" if self.rollback else "let through"


@dataclass(frozen=True, slots=True)
class Options:
    """What to rehearse. `memory`: MiB of the workload; `timeout`: seconds for the upgrade itself."""

    engine: str = "kexec"
    store: str = "auto"
    old: str = "trixie"
    new: str = "trixie-backports"
    further: tuple[str, ...] = ()  # kernels to go on to, one after the other, in the same virtual host
    memory: int = 64
    dirty: int = 0
    connections: int = 3  # of the client outside
    faults: tuple[Fault, ...] = ()  # one upgrade each, in one life of the machine, for as long as each is rolled back
    rollback: str = ""  # kind of the step at which an operator takes the upgrade back
    cycles: int = 0  # how often that is done before an upgrade that is let through; 0: once, and that is all
    keep: Path | None = None
    timeout: float = 420.0
    boot: str = "grub"  # one of virtual_host.BOOTS
    measured: bool = False  # the virtual host gets its memory at once, so that no pause is this machine's
    disk_rate: int = 0  # bytes a second that the virtual host's disk reads and writes at most; 0: what memory gives
    machine_memory: int = 0  # MiB; 0: by the size of the workload
    cpus: int = 0  # 0: as many as the engine needs
    memory_mode: str = "copy"  # or "in-place", as in a policy

    @property
    def fault(self) -> Fault | None:
        """The first one."""
        return self.faults[0] if self.faults else None

    @property
    def trials(self) -> tuple[Trial, ...]:
        """To the first new kernel: all but the last have to be taken back for the next one to be made."""
        if self.cycles:
            return (*(Trial(None, self.rollback or "ready-standby") for _ in range(self.cycles)), Trial())
        return tuple(Trial(fault, self.rollback) for fault in self.faults) or (Trial(None, self.rollback),)

    @property
    def beside(self) -> bool:
        """Whether the new kernel starts beside the old one."""
        return self.engine == "spawn"


def dumped(options: Options) -> int:
    """MiB in the workload's images: its memory, and what a forked child shares with it once more."""
    return options.memory + 16 + 48


def persistent_memory(options: Options) -> int:
    """MiB set aside for images: a whole one, what is written between the rounds, and slack."""
    return max(512, 256 * math.ceil(1.6 * dumped(options) / 256))


def second_kernel(options: Options) -> int:
    """MiB that a kernel beside this one is given: itself, and for images and the restored workload."""
    return _BLOCK * math.ceil((3.5 * dumped(options) + 640) / _BLOCK)


def movable_memory(options: Options) -> int:
    """MiB that can be taken from the running kernel: the second kernel's, and room for the originals that stay."""
    return max(2048, _BLOCK * math.ceil((second_kernel(options) + options.memory + 512) / _BLOCK))


def machine_memory(options: Options) -> int:
    """MiB of the virtual host, with room for the originals beside what the new kernel or the images take."""
    if options.machine_memory:
        return options.machine_memory
    if options.beside:
        return max(4096, movable_memory(options) + 2048)
    pmem = persistent_memory(options)
    return 2048 if pmem == 512 else 3072 + pmem + 2 * options.memory


def cpus(options: Options) -> int:
    """CPUs of the virtual host: one kernel beside the other needs some for each."""
    return options.cpus or (4 if options.beside else 2)


def kernel_line(options: Options) -> str:
    """The old kernel's command line. A larger range lies above 4 GiB, where this machine type has no hole."""
    if options.beside:
        stuck = options.fault is not None and options.fault.kind == "memory-refuses-offline"
        line = virtual_host.command_line_beside(0 if stuck else movable_memory(options))
        # A kernel put at random into the middle of a large range would leave no piece that is large enough.
        return line if second_kernel(options) < _LARGE else f"{line} nokaslr"
    pmem = persistent_memory(options)
    line = virtual_host.command_line(kho_kernel.COMMAND_LINE if _hands_over(options) else "")
    return line if pmem == 512 else line.replace("memmap=512M!1G", f"memmap={pmem}M!4G")


def _hands_over(options: Options) -> bool:
    """Whether one of the kernels can hand its memory over; to the others the words mean nothing."""
    return any(kho_kernel.is_name(each) for each in (options.old, options.new, *options.further))

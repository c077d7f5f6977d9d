"""The port `Beside`: a kernel beside this one, as steps speak to it; see ports.py for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kupgrade.model.machine import CpuSet, MemoryRange
from kupgrade.model.spawn import CpusBefore, Instance, MemoryBefore, Standby


class SpawnOrder(Protocol):
    """What a kernel beside this one is started from; the step that starts it."""

    @property
    def release(self) -> str:
        """Its release."""

    @property
    def kernel(self) -> str:
        """Path of its image."""

    @property
    def initrd(self) -> str:
        """Path of the standby initramfs."""

    @property
    def upgrade(self) -> str:
        """The upgrade's ID."""

    @property
    def epoch(self) -> int:
        """On its ticket."""

    @property
    def cpus(self) -> tuple[int, ...]:
        """Numbers here, the one that boots it first."""

    @property
    def memory(self) -> int:
        """Bytes that were taken for it."""

    @property
    def window(self) -> int:
        """Bytes shared by both kernels."""

    @property
    def serial(self) -> int:
        """Number of the serial port for its console; 0: none."""

    @property
    def extra(self) -> str:
        """More words for its command line."""


class Beside(Protocol):
    """A kernel beside this one, and what it is given."""

    def module_loaded(self) -> bool:
        """Whether kspawn's device is there."""

    def load_module(self) -> None:
        """Load kspawn."""

    def unload_module(self) -> None:
        """Unload it; done as well when it is not loaded."""

    def cpus_before(self, cpus: Sequence[int]) -> CpusBefore:
        """These CPUs as they are."""

    def take_cpus(self, before: CpusBefore) -> None:
        """Offline."""

    def give_cpus(self, before: CpusBefore) -> None:
        """As they were; whatever runs there is stopped."""

    def cpus_taken(self, before: CpusBefore) -> CpuSet:
        """Those of them that this kernel does not run on."""

    def memory_before(self) -> MemoryBefore:
        """The blocks that are online."""

    def take_memory(self, before: MemoryBefore, size: int) -> MemoryRange:
        """One run of `size` bytes offline; raises when there is none, and then nothing is taken."""

    def taken_memory(self, before: MemoryBefore, size: int) -> MemoryRange | None:
        """The run of at least `size` bytes that is offline and was online; None: there is none."""

    def give_memory(self, before: MemoryBefore) -> None:
        """Every block online that was."""

    def build_standby(self, release: str, out: str, modules: Sequence[str]) -> int:
        """Write the standby initramfs; its bytes."""

    def standby_built(self, out: str) -> bool:
        """Whether it is there."""

    def remove_standby(self, out: str) -> None:
        """Remove it; done as well when it is not there."""

    def blueprint(self, order: SpawnOrder) -> Instance:
        """Where it will live; without effect."""

    def spawn(self, order: SpawnOrder, instance: Instance, timeout: float) -> Standby:
        """Start it and wait up to `timeout` seconds for its hello; on an error its CPUs are stopped."""

    def answers(self, instance: Instance) -> bool | None:
        """Whether it answers now; None: what runs there cannot be told."""

    def fence(self, instance: Instance) -> None:
        """Stop its CPUs; done as well when they are."""

    def wipe(self, instance: Instance) -> None:
        """Overwrite its memory; it must have been fenced."""


class SilentlyBeside(Beside, Protocol):
    """A kernel beside this one in which no agent is."""

    def launch(self, order: SpawnOrder, instance: Instance, settle: float) -> None:
        """Start it; raises when it is seen to end within `settle` seconds, and then its CPUs are stopped."""

    def runs(self, instance: Instance) -> bool | None:
        """Whether its CPUs are started and nothing says that it ended; None: it cannot be told."""

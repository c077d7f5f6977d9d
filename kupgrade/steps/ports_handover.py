"""The ports by which a workload's state, devices and authority pass to a kernel beside this one; see ports.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kupgrade.model.workload import Store, Workload


@dataclass(frozen=True, slots=True)
class DiskFound:
    """How the new kernel finds the root file system: UUID, type, mount options."""

    uuid: str
    fstype: str
    options: str


READY, SHIPPED = "ready", "shipped"


class Handover(Protocol):
    """The old kernel's side."""

    def ready(self, modules: Sequence[str], workloads: Sequence[Workload], writes: int, ports: Sequence[str]) -> None:
        """Let the new kernel load what its devices need, warm criu up and lock its network.

        Raises KupgradeError when criu does not work there.
        `writes`: bytes of memory, at most, for what it writes before the commit. `ports`: to be handed over later.
        """

    def ship(self, store: Store, since: int) -> int:
        """Copy the rounds behind number `since` through the window into the new kernel's memory; bytes."""

    def ask(self, timeout: float) -> None:
        """Raise KupgradeError unless the agent in the new kernel answers, now or when it is there again (seconds)."""

    def answered(self, what: str) -> bool:
        """Whether the new kernel has told this very process that READY or SHIPPED is so. After a kill nobody knows."""

    def hand_over(self, store: Store, disk: DiskFound, ports: Sequence[str], deadline: float) -> None:
        """Freeze file systems, quiesce the devices behind `ports`, let the new kernel take over; watch it (seconds).

        Raises KupgradeError when it failed before its commit: then everything is back. Else this kernel ends in here.
        """

    def settle(self) -> None:
        """Go on watching a handover that a killed worker had begun; see `hand_over`. Does nothing without one."""


class Takeover(Protocol):
    """The new kernel's side."""

    def give_up(self, reason: str) -> None:
        """Let the old kernel take everything back. Does not return: this kernel is stopped."""

    def take_disk(self) -> float:
        """Declare the commit to the old kernel, then make the disk this kernel's; megabytes written back."""

    def disk_taken(self) -> bool | None:
        """Whether the root file system is written directly now; None: unknown."""

    def start_system(self, workloads: Sequence[Workload], timeout: float) -> None:
        """Let the first process become the host's own init; wait (seconds) until it answers."""

    def system_runs(self) -> bool:
        """Whether it does."""

    def adopt(self, workloads: Sequence[Workload], timeout: float) -> None:
        """Make each restored tree its unit's again; raises naming the first that is not (seconds)."""

    def retire(self, ports: Sequence[str], timeout: float, panic: int) -> dict[str, float | int | str]:
        """Let the old kernel give the rest and end, then set kernel.panic; figures of what was gained (seconds)."""

    def retired(self) -> bool | None:
        """Whether the old kernel has left; None: unknown."""

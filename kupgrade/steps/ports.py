"""The ports that steps speak to: narrow protocols, so that a fake is small and nobody can reach for more.

The real ones are put together in kupgrade/machine.py; the crash tests put a fake machine behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kupgrade.model.plan import Allowance
from kupgrade.model.workload import FileState, Store, Watched, Workload


class Images(Protocol):
    """Checkpoint images of one store."""

    def prepare(self, store: Store) -> None:
        """Make the directory, mount the device."""

    def ready(self, store: Store) -> bool:
        """Whether images can be written and read there now."""

    def remember(self, store: Store) -> None:
        """Checksum what is there already (pre-dump rounds), so that sealing in the blackout has less to do."""

    def seal(self, store: Store, upgrade: str, releases: tuple[str, str]) -> int:
        """Checksum, flush, write the complete mark; the bytes held."""

    def sealed(self, store: Store) -> bool:
        """Whether the complete mark is there."""

    def verify(self, store: Store, *, in_place: bool = False) -> None:
        """Raise BadInputError unless the images are as sealed: what criu is steered by, of the rest the sizes.

        The rest is read while its caller goes on: nothing may be let run before `verified` has come back. With
        `in_place` the memory in it is read by whoever places it, chunk by chunk, before it is placed.
        """

    def verified(self, store: Store) -> None:
        """Raise KupgradeError unless every image is as sealed; waits for what `verify` began, or does all by itself.

        What was checksummed on its way through a window is not read again.
        """

    def recheck(self, store: Store) -> None:
        """Read back what the last dump wrote, and all sizes; raise BadInputError when anything differs.

        Of what goes through a window the sizes alone: it is read before the originals end.
        """

    def preserve(self, store: Store) -> tuple[int, int]:
        """Have this kernel hand the sealed images to the next one: how many files, and their bytes."""

    def preserved(self, store: Store) -> bool | None:
        """Whether it would, if it ended now; None: unknown."""

    def fetched(self, store: Store) -> Mapping[str, float | int]:
        """Figures of what the kernel before this one handed over, as far as this process knows."""

    def take_back(self, store: Store) -> None:
        """It hands over nothing any more. The images are of no use then: the originals are all there is."""

    def withdraw(self, store: Store) -> None:
        """Remove the complete mark durably: the images are dead."""

    def wipe(self, store: Store) -> None:
        """Overwrite and remove all images and unmount."""

    def present(self, store: Store) -> bool:
        """Whether any image is left."""


class Checkpoints(Protocol):
    """Dump and restore of workloads."""

    def pre_dump(self, store: Store, rounds: Sequence[tuple[Workload, int]]) -> Sequence[int]:
        """Each workload's round of that number, from 1, while it runs, all at once; bytes written, in the same order.

        A first round begins anew.
        """

    def rounds(self, store: Store, workload: Workload) -> int:
        """How many rounds there are to go on from; 0, too, when one was cut short: what it copied is not known."""

    def changed(self, workload: Workload) -> int | None:
        """Bytes that it wrote to since the last round; None: not known."""

    def dump(self, store: Store, workloads: Sequence[Workload]) -> int:
        """The final dump of frozen workloads, which stay frozen, all at once; bytes written."""

    def let_go(self, workloads: Sequence[Workload]) -> None:
        """Take back what a dump does to frozen workloads and undoes itself in the end, where it did not come so far."""

    def summon(self, workloads: Sequence[Workload]) -> None:
        """Start what will restore, ahead of time: it waits for `restore`. No effect on the workloads."""

    def restore(
        self, store: Store, workloads: Sequence[Workload], timeout: float, *, in_place: bool = False
    ) -> Mapping[str, float | int | str]:
        """Restore all, stopped, each in its unit; figures. Raises when one fails (seconds).

        `in_place`: without their memory, which is filled from the images meanwhile and while they run.
        """

    def sound(self, workloads: Sequence[Workload]) -> None:
        """Raise KupgradeError when memory is being filled in place and it is known that some of it will not come."""

    def filled(self, workloads: Sequence[Workload]) -> bool | None:
        """Whether nothing waits for images any more; None: it never will, and whoever lacks something was killed."""

    def await_filled(self, workloads: Sequence[Workload]) -> Mapping[str, float | int | str]:
        """Wait for that; figures. Raises NeedsHumanError when it cannot be."""

    def restored(self, workloads: Sequence[Workload]) -> bool | None:
        """Whether all processes of all workloads are there; None: some are, some not."""

    def kill(self, workloads: Sequence[Workload]) -> None:
        """End restored, still stopped copies without a packet or a write."""

    def thaw_restored(self, workloads: Sequence[Workload]) -> None:
        """Let restored, stopped copies run."""

    def running(self, workloads: Sequence[Workload]) -> bool | None:
        """Whether all processes run (none stopped or frozen)."""


class Freezer(Protocol):
    """The cgroup freezer."""

    def frozen(self, workload: Workload) -> bool | None:
        """Whether the workload's cgroup is frozen; None: unknown."""

    def freeze(self, workload: Workload) -> None:
        """Freeze and wait until it is."""

    def thaw(self, workload: Workload) -> None:
        """Thaw."""

    def pids(self, workload: Workload) -> tuple[int, ...]:
        """Processes in the workload's cgroup now."""


class Network(Protocol):
    """The lock table and the retransmit kick."""

    def lock(self, workloads: Sequence[Workload], *, both: bool) -> None:
        """Drop packets to the workloads' ports, durably for the next boots."""

    def locked(self) -> bool | None:
        """Whether the lock table is there; None: unknown."""

    def unlock(self) -> None:
        """Remove the lock, here and for the next boots."""

    def kick(self, store: Store, workloads: Sequence[Workload]) -> int:
        """Make peers retransmit at once; how many connections were kicked."""


class Units(Protocol):
    """systemd units."""

    def hold(self, workload: Workload, upgrade: str, timeout: int) -> None:
        """Make the unit's next start (in another boot) a restore."""

    def held(self, workload: Workload) -> bool:
        """Whether that drop-in is there."""

    def release(self, workloads: Sequence[Workload]) -> None:
        """Give the units their own configuration back."""

    def adopted(self, workload: Workload) -> str:
        """Empty when the unit is active with the workload's root process; else what is wrong."""

    def watched(self, workloads: Sequence[Workload]) -> tuple[Watched, ...]:
        """Of their units those that are killed when nothing is heard of them for some time."""

    def watch(self, workload: Workload, seconds: float) -> None:
        """Have its unit watched so from now on, 0: not at all. One that does not run needs nobody."""

    def active(self) -> tuple[str, ...]:
        """Active services."""

    def stop(self, units: Sequence[str]) -> None:
        """Stop cleanly."""

    def start(self, units: Sequence[str]) -> None:
        """Start in the background."""


class Boot(Protocol):
    """The boot loader's default entry; None or empty: unknown or unsupported."""

    def default(self) -> str:
        """The default entry's id."""

    def stored(self) -> str | None:
        """What is written down as the default, exactly; None: nothing is."""

    def set_default(self, entry: str) -> None:
        """Make an entry the default."""

    def restore_default(self, stored: str | None) -> None:
        """Write down what `stored` had told."""

    def entry_for(self, release: str) -> str:
        """The entry's id of a release."""


class Crossing(Protocol):
    """kexec and what goes with it."""

    def stage(self, initrd: str, out: str, pid_floor: int, deadline: int) -> None:
        """Write the crossing initrd: the original and our early init."""

    def staged(self, out: str) -> bool:
        """Whether it is there and whole."""

    def unstage(self, out: str) -> None:
        """Remove it."""

    def load(self, kernel: str, initrd: str, cmdline: str) -> None:
        """kexec_file_load."""

    def loaded(self) -> bool | None:
        """Whether an image is loaded; None: unknown."""

    def unload(self) -> None:
        """Forget the loaded image."""

    def cross(self) -> None:
        """Flush and freeze file systems, then reboot(2) into the loaded image; returns only by an error."""

    def thaw_filesystems(self) -> None:
        """Undo the freeze of a crossing that did not happen."""

    def arm_watchdog(self, seconds: int) -> str:
        """Arm a watchdog that survives the crossing; its name, or why there is none."""

    def disarm_watchdog(self) -> None:
        """Stop it."""

    def deadman(self) -> bool:
        """Whether the early init's dead-man timer runs."""

    def cancel_deadman(self) -> None:
        """End the early init's dead-man timer."""

    def panic_timeout(self) -> int:
        """kernel.panic in seconds."""

    def set_panic_timeout(self, seconds: int) -> None:
        """Set kernel.panic."""


class Health(Protocol):
    """Probes, and the files a probed workload may write meanwhile."""

    def gate(self, workloads: Sequence[Workload], store: Store, allowances: Sequence[Allowance]) -> None:
        """Ask once more: same processes, room for images, budget as measured; raises when the answer is no."""

    def open_files(self, workload: Workload) -> tuple[FileState, ...]:
        """Regular files open for writing."""

    def probe(self, workload: Workload) -> None:
        """Raise unless healthy; the workload runs, its network is locked."""

    def pause(self, workload: Workload) -> None:
        """Stop a probed workload again."""

    def take_back(self, files: Sequence[FileState]) -> None:
        """Cut appended bytes off; raises when a file was changed in another way."""

    def facts(self) -> Mapping[str, str]:
        """Facts named in the plan, as they are now."""

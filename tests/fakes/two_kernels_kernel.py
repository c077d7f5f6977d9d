"""One of the two kernels: what belongs to its memory, its view of the disk, and its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kupgrade.model.record import Now, Record, RecordKind, State
from tests.fakes.endings import NEW_ENTRY, OPEN_INTENT, REBOOT_ASKED, Copy, Image
from tests.fakes.filling import Filling
from tests.fakes.handed_over import HandedOver
from tests.fakes.logs import check_commit
from tests.fakes.machine import Machine
from tests.fakes.two_kernels_parts import Disk, RunDirectory, RunFile

if TYPE_CHECKING:
    from tests.fakes.two_kernels import Box


class Kernel:
    """One running kernel; what the ports of machine.py call the machine."""

    def __init__(self, box: Box, boot_id: str, release: str, ticket: str | None, panic: int) -> None:
        self.box, self.boot_id, self.release, self.ticket, self.panic = box, boot_id, release, ticket, panic
        self.plan, self.workloads, self.behaviour = box.plan, box.workloads, box.behaviour
        self.side = "new" if ticket else "old"
        self.alive = True
        self.run = RunDirectory()
        self.root = RunDirectory(self._sysctl)
        self.root.files["proc/sys/kernel/panic"] = str(panic)
        # Its memory.
        self.store_made = self.mounted = self.filesystems_frozen = self.gate_passed = self.summoned = False
        self.rounds: set[str] = set()
        self.images: dict[str, Image] = {}
        self.sealed_in: str | None = None
        self.lock = "both" if box.disk.lock_file and ticket is None else ""
        self.copies: dict[str, Copy] = {}
        self.watched: dict[str, float] = {}
        self.pending: set[str] = set()
        self.stale_units: set[str] = set()
        self.active: set[str] = set()
        self.started_in = ""
        self.probed: set[str] = set()
        self.probing = ""
        self.pids_free = True
        self.uptime = 100.0
        self.reboot_packages: tuple[str, ...] = REBOOT_ASKED if boot_id == box.plan.boot_id else ()
        self.deadman = self.watchdog = False
        self.handed = HandedOver(cast(Machine, self), used=False)
        self.filling = Filling(cast(Machine, self), lasts=300)
        self.thaw_failures = self.behaviour.thaw_failures
        # Only of one beside another.
        self.agent = True
        self.dead = self.hung = self.system = self.root_mounted = False
        self.overlay: Disk | None = None
        self.cache: Disk | None = None  # what the old kernel still believes of a disk that another one has written

    def _sysctl(self, name: str, text: str) -> None:
        if name == "proc/sys/kernel/panic":
            self.panic = int(text)

    @property
    def rollback_request(self) -> RunFile:
        return self.run / "rollback-requested"

    @property
    def addresses(self) -> RunFile:
        return self.run / "no network.json"

    @property
    def disk(self) -> Disk:
        return self.overlay or self.cache or self.box.disk

    def write(self) -> Disk:
        """The disk, to be written now."""
        box = self.box
        if self.filesystems_frozen:
            self.violate(f"the {self.side} kernel writes to a frozen file system")
        if self.overlay is None:
            if box.drivers["disk"] is not self:
                self.violate(f"the {self.side} kernel writes a disk that it does not drive")
            if self is box.new and not box.flag:
                self.violate("the new kernel writes the disk before its flag")
        return self.disk

    @property
    def files(self) -> dict[str, int]:
        return self.disk.files

    @property
    def holds(self) -> set[str]:
        return self.disk.holds

    @property
    def down(self) -> set[str]:
        return self.disk.down

    @property
    def initrds(self) -> dict[str, int]:
        return self.disk.initrds

    @property
    def lock_file(self) -> bool:
        return self.disk.lock_file

    @lock_file.setter
    def lock_file(self, value: bool) -> None:
        self.write().lock_file = value

    @property
    def stored_default(self) -> str | None:
        return self.disk.stored_default

    @stored_default.setter
    def stored_default(self, value: str | None) -> None:
        self.write().stored_default = value

    def default(self) -> str:
        return self.stored_default or NEW_ENTRY

    @property
    def seen(self) -> dict[str, int]:
        return self.box.seen

    @property
    def boots(self) -> int:
        return self.box.boots

    @property
    def committed(self) -> bool:
        return any(record.kind is RecordKind.COMMITTED for record in self.disk.records)

    def restorable(self, name: str) -> bool:
        """Whether a checkpoint in its memory holds all that clients saw."""
        image = self.images.get(name)
        return self.sealed_in is not None and image is not None and image.generation >= self.seen[name]

    def violate(self, text: str) -> None:
        self.box.violate(text)

    def tick(self, label: str) -> None:
        self.box.tick(self, label)

    def act(self, label: str) -> None:
        """The tick before an effect: its intent must be in the journal that this kernel sees."""
        last = next(r.kind for r in reversed(self.disk.records) if r.kind is not RecordKind.NOTE)
        if len(self.disk.records) > 1 and last not in OPEN_INTENT:
            self.violate(f"{label} without its intent in the journal: the last record is {last.value}")
        self.tick(label)

    def cold_start(self, name: str) -> None:
        if name in self.copies:
            self.violate(f"{name} was started a second time beside its copy")
        if not self.box.excused:
            self.violate(f"{name} was started cold and no crash of the machine excuses it")
        if self.files[name] < self.seen[name]:
            self.violate(f"{name} comes up from {self.files[name]}, clients saw {self.seen[name]}")
        self.box.cold_starts[name] = self.box.cold_starts.get(name, 0) + 1
        self.copies[name] = Copy(self.files[name], self.box.boots)
        self.watched |= {w.name: w.watchdog for w in self.workloads if w.watchdog and w.name == name}
        self.box.connected[name] = True

    def now(self, _state: State) -> Now:
        return Now(self.boot_id, self.release, self.ticket, self.pids_free)


class SpawnLog:
    """The journal, as a process in one kernel sees it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.on_disk = True

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self.kernel.disk.records)

    @property
    def next_seq(self) -> int:
        return len(self.kernel.disk.records) + 1

    def sync(self) -> None:
        self.kernel.disk.sync()

    def append(self, record: Record, *, durable: bool = True) -> None:
        kernel = self.kernel
        step = "" if record.step is None else kernel.plan.steps[record.step].kind
        label = f"{record.kind.value} {step}".strip()
        kernel.tick(f"before record: {label}")
        kernel.write().records.append(record)
        if durable and self.on_disk:
            self.sync()
        if record.kind is RecordKind.COMMITTED:
            check_commit(cast(Machine, kernel))
        kernel.tick(f"after record: {label}")

    def close(self) -> None:
        pass

"""A small deterministic model of a host behind the ports of kupgrade/steps/ports.py.

What is on disk survives a reboot, what belongs to a boot does not. Workloads do work at every tick in which they run:
they count, append to a file and, unless the lock keeps it in, send what clients then have seen. So the model itself
notices what must never happen, and lists it in `violations`.

A tick is a point where the tool or the machine can end: before each single effect on the machine, at each fault point
of the loop, and before and after each append to the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kupgrade.model.kernel import CommandLine
from kupgrade.model.plan import Plan
from kupgrade.model.record import Now, RecordKind, State
from kupgrade.model.workload import StoreKind, Workload
from tests.fakes.endings import (
    ADMIN_PANIC,
    NEW_ENTRY,
    OPEN_INTENT,
    REBOOT_ASKED,
    Behaviour,
    Copy,
    Hung,
    Image,
    Kill,
    Loaded,
    PowerCut,
)
from tests.fakes.filling import Filling
from tests.fakes.handed_over import HandedOver
from tests.fakes.stopping import started_by_boot
from tests.fakes.stored import Stored

if TYPE_CHECKING:
    from tests.fakes.logs import MemoryLog


@dataclass
class Machine:
    """The host. The first fields are what tests read and set; `host` is what steps get."""

    plan: Plan
    workloads: tuple[Workload, ...]
    services: tuple[str, ...]  # active before
    behaviour: Behaviour = field(default_factory=Behaviour)
    faults: Mapping[int, str] = field(default_factory=dict)
    log: MemoryLog | None = None

    def __post_init__(self) -> None:
        self.violations: list[str] = []
        self.trace: list[str] = []
        self.guarded: list[int] = []  # ticks at which the dead-man timer would end a hang
        # On disk.
        self.stored_default = self.behaviour.stored_default
        self.store_made = False
        self.rounds: set[str] = set()
        self.images: dict[str, Image] = {}
        self.sealed_in: str | None = None  # the boot in which the complete mark was written
        self.lock_file = False
        self.holds: set[str] = set()
        self.down: set[str] = set()  # units that nobody can start
        self.started_in = ""  # the boot in which they were started again
        self.initrds: dict[str, int] = {}
        self.files = {w.name: 10 for w in self.workloads}
        self.handed = HandedOver(self, used=self.plan.store == StoreKind.LUO.value)
        self.stored = Stored(self, used=any(spec.kind == "hold-descriptors" for spec in self.plan.steps))
        self.filling = Filling(self)
        # In hardware.
        self.watchdog = False
        # Outside.
        self.seen = {w.name: 10 for w in self.workloads}
        self.connected = {w.name: True for w in self.workloads}
        self.excused = False  # an ordinary power cut outside the protected time took what ran
        self.cold_starts = 0
        self.thaw_failures = self.behaviour.thaw_failures
        self.boots = 0
        self._new_boot(self.plan.old_release)
        self.copies = {w.name: Copy(10, 0) for w in self.workloads}
        self.watched = {w.name: w.watchdog for w in self.workloads if w.watchdog}
        self.active = set(self.services)
        from tests.fakes.host import Host  # whose ports name this class

        self.host = Host(self)

    # -- boots ---------------------------------------------------------------------------------------------------

    def _new_boot(
        self, release: str, ticket: str | None = None, deadline: int | None = None, panic: int = ADMIN_PANIC
    ) -> None:
        self.boots += 1
        self.boot_id = f"boot-{self.boots}" if self.boots > 1 else self.plan.boot_id
        self.release = release
        self.ticket = ticket
        self.pids_free = deadline is not None or not self.behaviour.plain_boot_takes_pids
        self.deadman = bool(deadline)
        self.panic = panic
        self.loaded: Loaded | None = None
        self.lock = "both" if self.lock_file else ""
        self.mounted = False
        self.active = started_by_boot(self.services, self.down)
        self.copies: dict[str, Copy] = {}
        self.watched: dict[str, float] = {}  # by systemd; what it adopts is not
        self.filling.booted()
        self.pending: set[str] = set()
        self.filesystems_frozen = False
        self.rollback_request = ""
        self.probed: set[str] = set()
        self.probing = ""
        self.gate_passed = False
        self.summoned = False
        self.uptime = 100.0
        # /run ends with the boot; in the first one packages have asked for a restart.
        self.reboot_packages: tuple[str, ...] = REBOOT_ASKED if self.boots == 1 else ()
        self.stale_units: set[str] = set()  # systemd still goes by a drop-in that was removed

    def start_units(self) -> None:
        """What systemd does in a boot: held units wait for the agent, the others start cold."""
        for workload in self.workloads:
            if workload.name in self.holds:
                self.pending.add(workload.name)
            else:
                self.cold_start(workload.name)

    def cold_start(self, name: str) -> None:
        if name in self.copies:
            self.violate(f"{name} was started a second time beside its copy")
        if not self.excused:
            self.violate(f"{name} was started cold, its memory is lost and no power cut excuses it")
        self.cold_starts += 1
        self.watched |= {w.name: w.watchdog for w in self.workloads if w.watchdog and w.name == name}
        self.copies[name] = Copy(self.files[name], self.cold_starts)
        self.connected[name] = True

    def end_boot(self, *, injected: bool) -> None:
        """Every process ends with its kernel."""
        if injected and not self.protected():
            self.excused = True
            self.connected = dict.fromkeys(self.connected, False)
        for name in self.copies:
            if not self.excused and not self.restorable(name):
                self.violate(f"{name} ended with its kernel and no checkpoint holds it")
        self.copies = {}

    def reset(self, *, injected: bool = False) -> None:
        """Power cut, watchdog, panic or ordinary restart: firmware and boot loader choose."""
        self.handed.restarted()
        self.stored.restarted()
        self.end_boot(injected=injected)
        self.watchdog = False
        release = self.plan.new_release if self.default() == NEW_ENTRY else self.plan.old_release
        self._new_boot(self.behaviour.foreign or release)
        self.start_units()

    def kexec(self) -> None:
        """The loaded kernel starts; the watchdog counts on."""
        loaded = self.loaded
        if loaded is None:
            self.violate("jumped without a loaded kernel")
            self.reset()
            return
        if self.handed.used and self.images and not self.handed.preserved():
            self.violate("jumped and left the images behind")
        self.handed.jumped()
        self.stored.jumped()
        self.end_boot(injected=False)
        line = CommandLine.parse(loaded.cmdline)
        new = loaded.kernel.endswith(self.plan.new_release)
        ticket = None if self.behaviour.ticket_lost else line.get("kupgrade.ticket")
        release = self.plan.new_release if new else self.plan.old_release
        self._new_boot(release, ticket, loaded.deadline, int(line.get("panic") or 0))
        if new and self.behaviour.new_kernel == "panics":
            if not self.panic:
                self.violate("the new kernel panicked and kernel.panic is 0: it stays dead")
            self.reset()
        elif new and self.behaviour.new_kernel == "hangs":
            self.hang()
        else:
            if self.behaviour.sysctl_sets_panic:
                self.panic = ADMIN_PANIC
            self.start_units()

    def hang(self) -> None:
        """Nothing but a timer ends this."""
        if not (self.watchdog or self.deadman):
            self.violate("the machine hangs and no watchdog or dead-man timer is armed")
        self.reset()

    # -- what is true ----------------------------------------------------------------------------------------------

    def default(self) -> str:
        return self.stored_default or NEW_ENTRY

    def restorable(self, name: str) -> bool:
        image = self.images.get(name)
        return self.sealed_in is not None and image is not None and image.generation >= self.seen[name]

    def protected(self) -> bool:
        """From the complete mark until the intent to let a copy run again, no power cut may lose anything."""
        kinds = [spec.kind for spec in self.plan.steps]
        records = self.log.records if self.log is not None else ()
        for record in records:
            kind = kinds[record.step] if record.step is not None else ""
            if record.kind is RecordKind.COMMITTED or (kind, record.kind) == ("thaw", RecordKind.STARTED):
                return False
            if record.kind is RecordKind.UNDO_STARTED and (
                kind == "freeze" or (kind == "dump" and record.boot_id == self.plan.boot_id)
            ):
                return False
        return self.sealed_in is not None

    @property
    def committed(self) -> bool:
        return self.log is not None and self.log.committed

    def fingerprint(self) -> tuple[object, ...]:
        """All that an action could change, without what workloads do by themselves."""
        return (
            self.stored_default, self.store_made, tuple(sorted(self.images.items(), key=str)), self.sealed_in,
            self.lock_file, tuple(sorted(self.holds)), tuple(sorted(self.down)), tuple(sorted(self.initrds)),
            self.watchdog, self.boot_id, self.deadman, self.panic, self.loaded, self.lock, self.filesystems_frozen,
            tuple(sorted(self.active)), tuple(sorted(self.copies)), tuple(sorted(self.watched)), self.stored.image,
        )  # fmt: skip

    def restored_or_running(self) -> bool:
        """Whether every workload has a copy."""
        return len(self.copies) == len(self.workloads)

    def violate(self, text: str) -> None:
        self.violations.append(f"{text} (tick {len(self.trace)}, {self.trace[-1] if self.trace else 'start'})")

    # -- time ----------------------------------------------------------------------------------------------------

    def tick(self, label: str) -> None:
        """Time passes; then the planned fault of this tick strikes."""
        self.trace.append(label)
        if self.deadman:
            self.guarded.append(len(self.trace))
        self.work()
        self.filling.work()
        match self.faults.get(len(self.trace)):
            case "kill":
                raise Kill
            case "cut":
                raise PowerCut
            case "hang":
                raise Hung
            case "rollback":
                self.rollback_request = "asked by the operator"

    def act(self, label: str) -> None:
        """The tick before an effect: its intent must be in the journal."""
        last = self.log.last if self.log is not None else None
        if last is not None and last not in OPEN_INTENT:
            self.violate(f"{label} without its intent in the journal: the last record is {last.value}")
        self.tick(label)

    def work(self) -> None:
        for workload in self.workloads:
            name = workload.name
            copy = self.copies.get(name)
            if copy is None:
                self._work_without_copy(name)
            elif copy.running:
                self._work_of_copy(name, copy)
            elif name in self.watched:
                self.violate(f"systemd hears nothing of {name} and kills it")

    def _work_without_copy(self, name: str) -> None:
        if not self.lock and self.connected[name]:
            self.violate(f"a packet for {name} met no process: RST")
            self.connected[name] = False
        if not self.excused and not self.restorable(name):
            self.violate(f"{name} is gone: no copy, no checkpoint")

    def _work_of_copy(self, name: str, copy: Copy) -> None:
        if copy.generation < max(self.seen[name], self.files[name]):
            self.violate(
                f"output of {name} goes back: it runs from {copy.generation}, clients saw {self.seen[name]},"
                f" its file has {self.files[name]}"
            )
        if self.sealed_in == self.boot_id:
            self.violate(f"{name} runs beside a complete mark that its own dump wrote")
        if self.ticket is not None and not self.committed and self.probing != name:
            self.violate(f"{name} runs in the new kernel before the commit")
        copy.generation += 1
        self.files[name] = copy.generation
        if self.lock != "both":
            self.seen[name] = copy.generation

    def now(self, _state: State) -> Now:
        images = None
        if self.handed.used and self.boot_id != self.plan.boot_id:
            images = self.sealed_in is not None and self.handed.visible
        return Now(self.boot_id, self.release, self.ticket, self.pids_free or bool(self.copies), images)

"""A small deterministic model of a host behind the ports of kupgrade/steps/ports.py.

What is on disk survives a reboot, what belongs to a boot does not. Workloads do work at every tick in which they run:
they count, append to a file and, unless the lock keeps it in, send what clients then have seen. So the model itself
notices what must never happen, and lists it in `violations`.

A tick is a point where the tool or the machine can end: before each single effect on the machine, at each fault point
of the loop, and before and after each append to the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.journal import Journal, encode_line
from kupgrade.model.codec import encode
from kupgrade.model.kernel import CommandLine
from kupgrade.model.plan import Allowance, Plan
from kupgrade.model.record import Now, Record, RecordKind, State
from kupgrade.model.workload import FileState, ProbeKind, Store, Workload

OLD_ENTRY, NEW_ENTRY = "entry-old", "entry-new"
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
    damaged_images: str = ""  # at once, later
    gate_says_no: bool = False
    dump_fails: bool = False
    thaw_failures: int = 0  # how often the thaw of restored copies fails before it works
    stored_default: str | None = OLD_ENTRY  # None: the boot loader takes the newest
    watchdog: bool = True
    sysctl_sets_panic: bool = False  # user space writes kernel.panic early in every boot
    foreign: str = ""  # release that the next plain boot runs, chosen by somebody else
    ticket_lost: bool = False
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


@dataclass
class Machine:
    """The host. The first fields are what tests read and set; `host` is what steps get."""

    plan: Plan
    workloads: tuple[Workload, ...]
    services: tuple[str, ...]  # active before; all but the last are enabled
    behaviour: Behaviour = Behaviour()
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
        self.initrds: dict[str, int] = {}
        self.files = {w.name: 10 for w in self.workloads}
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
        self.active = set(self.services)
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
        self.active = set(self.services[:-1])
        self.copies: dict[str, Copy] = {}
        self.pending: set[str] = set()
        self.filesystems_frozen = False
        self.rollback_request = ""
        self.probed: set[str] = set()
        self.probing = ""
        self.gate_passed = False
        self.summoned = False
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
            self.lock_file, tuple(sorted(self.holds)), tuple(sorted(self.initrds)), self.watchdog, self.boot_id,
            self.deadman, self.panic, self.loaded, self.lock, tuple(sorted(self.active)), tuple(sorted(self.copies)),
            self.filesystems_frozen,
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
        return Now(self.boot_id, self.release, self.ticket, self.pids_free or bool(self.copies))


class MemoryLog:
    """A journal in memory: what was appended is durable, an append can be lost before it is."""

    def __init__(self, machine: Machine | None = None) -> None:
        self._records: list[Record] = []
        self._machine = machine
        self.last: RecordKind | None = None  # kind of the last record, notes aside
        self.committed = False

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)

    @property
    def next_seq(self) -> int:
        return len(self._records) + 1

    def begin(self, planned: Record) -> None:
        """The upgrade has begun: its plan is recorded."""
        self._write(planned)

    def append(self, record: Record) -> None:
        machine = self._machine
        if machine is None:
            self._records.append(record)
            return
        if machine.filesystems_frozen:
            raise Hung  # a write to a frozen file system waits for ever
        label = f"{record.kind.value} {'' if record.step is None else machine.plan.steps[record.step].kind}".strip()
        try:
            machine.tick(f"before record: {label}")
        except EndError:
            self._tear(record)
            raise
        self._write(record)
        if record.kind is not RecordKind.NOTE:
            self.last = record.kind
        self.committed |= record.kind is RecordKind.COMMITTED
        if record.kind is RecordKind.COMMITTED:
            _check_commit(machine)
        machine.tick(f"after record: {label}")

    def reopen(self) -> None:
        """A new process, or a new kernel, reads what is there."""

    def _write(self, record: Record) -> None:
        self._records.append(record)

    def _tear(self, record: Record) -> None:
        """An append that was cut short leaves nothing that counts."""


class FileLog(MemoryLog):
    """The real journal on a real file; an append that is cut short leaves a part of its line behind."""

    def __init__(self, machine: Machine, path: Path) -> None:
        super().__init__(machine)
        self._path = path
        self._journal = Journal.create(path)

    @property
    def records(self) -> tuple[Record, ...]:
        return self._journal.records

    @property
    def next_seq(self) -> int:
        return self._journal.next_seq

    def reopen(self) -> None:
        self._journal.close()
        self._journal = Journal.open(self._path)

    def close(self) -> None:
        self._journal.close()

    def _write(self, record: Record) -> None:
        self._journal.append(record)

    def _tear(self, record: Record) -> None:
        line = encode_line(encode(record))
        with self._path.open("ab") as file:
            file.write(line[: record.seq * 7 % len(line)])


def _check_commit(machine: Machine) -> None:
    """What must hold when the point of no return is recorded."""
    for workload in machine.workloads:
        copy = machine.copies.get(workload.name)
        if copy is None or copy.running:
            machine.violate(f"committed while {workload.name} is {'gone' if copy is None else 'running'}")
        if workload.probe.kind is not ProbeKind.NONE and workload.name not in machine.probed:
            machine.violate(f"committed although the probe of {workload.name} never answered")
    if machine.lock != "both":
        machine.violate("committed with an open network")
    if machine.deadman or machine.watchdog:
        machine.violate("committed with a timer armed: it would reset a serving machine")


class Host:
    """The ports, each a few lines on the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.images = Images(machine)
        self.checkpoints = Checkpoints(machine)
        self.freezer = Freezer(machine)
        self.network = Network(machine)
        self.units = Units(machine)
        self.boot = Boot(machine)
        self.crossing = Crossing(machine)
        self.health = Health(machine)

    def go_back(self) -> None:
        machine = self.machine
        cross = next(spec.params for spec in machine.plan.steps if spec.kind == "cross")
        if machine.behaviour.back_kexec_fails:
            machine.act("restart")
            raise Restarted
        self.crossing.load(cross["back_kernel"], cross["back_initrd"], cross["back_cmdline"])
        self.crossing.cross()

    def reenter(self, plan: Plan) -> None:
        self.go_back()


@dataclass
class _Port:
    m: Machine


class Images(_Port):
    def prepare(self, store: Store) -> None:
        if not (self.m.store_made and self.m.mounted):
            self.m.act("make store")
            self.m.store_made = self.m.mounted = True

    def ready(self, store: Store) -> bool:
        return self.m.store_made and self.m.mounted

    def remember(self, store: Store) -> None:
        pass

    def seal(self, store: Store, upgrade: str, releases: tuple[str, str]) -> int:
        self.m.act("seal")
        if set(self.m.images) != {w.name for w in self.m.workloads}:
            self.m.violate("sealed although images are missing")
        self.m.sealed_in = self.m.boot_id
        return 1

    def sealed(self, store: Store) -> bool:
        return self.m.sealed_in is not None

    def verify(self, store: Store) -> None:
        if self.m.sealed_in is None:
            raise BadInputError("The checkpoint images are not complete")
        if self.m.behaviour.damaged_images:
            raise BadInputError("A checkpoint image is damaged")

    def recheck(self, store: Store) -> None:
        if self.m.behaviour.damaged_images == "at once":
            raise BadInputError("A checkpoint image is damaged")

    def withdraw(self, store: Store) -> None:
        self.m.act("withdraw")
        self.m.sealed_in = None

    def wipe(self, store: Store) -> None:
        self.withdraw(store)
        for name in list(self.m.images):
            self.m.act(f"wipe {name}")
            del self.m.images[name]
        self.m.rounds.clear()
        self.m.act("remove store")
        self.m.store_made = self.m.mounted = False

    def present(self, store: Store) -> bool:
        return bool(self.m.images or self.m.rounds)


class Checkpoints(_Port):
    def changed(self, workload: Workload) -> int | None:
        return None

    def pre_dump(self, store: Store, workload: Workload, number: int) -> int:
        self.m.act(f"pre-dump {workload.name}")
        self.m.rounds.add(f"{workload.name}/{number}")
        return 100 >> number

    def rounds(self, store: Store, workload: Workload) -> int:
        return sum(name.startswith(f"{workload.name}/") for name in self.m.rounds)

    def dump(self, store: Store, workload: Workload) -> int:
        self.m.act(f"dump {workload.name}")
        copy = self.m.copies[workload.name]
        if not self.m.lock:
            self.m.violate(f"{workload.name} was dumped while packets come in: what it acknowledges now is lost")
        if copy.running:
            self.m.violate(f"{workload.name} was dumped while it runs")
        if self.m.behaviour.dump_fails and workload is not self.m.workloads[0]:
            raise KupgradeError("criu dump failed")
        self.m.images[workload.name] = Image(copy.generation, copy.lineage)
        return 1

    def summon(self, workloads: Sequence[Workload]) -> None:
        self.m.act("summon")
        self.m.summoned = True

    def restore(self, store: Store, workloads: Sequence[Workload], timeout: float) -> None:
        side = "new" if self.m.ticket is not None else "old"
        for number, workload in enumerate(workloads):
            self.m.act(f"restore {workload.name}")
            if side in self.m.behaviour.restore_fails and number:
                raise KupgradeError(f"{workload.name} could not be restored")
            self._restore(workload.name)

    def _restore(self, name: str) -> None:
        if name in self.m.copies or not self.m.pids_free:
            raise KupgradeError(f"{name} could not be restored", "a PID is taken")
        if not self.m.summoned:
            raise KupgradeError(f"{name} could not be restored", "no restorer")
        if self.m.sealed_in is None or name not in self.m.images:
            self.m.violate(f"{name} was restored from incomplete images")
            return
        if self.m.lock != "both":
            self.m.violate(f"{name} was restored with an open network")
        image = self.m.images[name]
        if image.generation < self.m.seen[name]:
            self.m.violate(f"{name} was restored from stale images: {image.generation} after {self.m.seen[name]}")
        if image.generation != self.m.files[name]:
            self.m.violate(f"{name} was restored to {image.generation} but its file has {self.m.files[name]}")
        self.m.pending.discard(name)
        self.m.copies[name] = Copy(image.generation, image.lineage, stopped=True)

    def restored(self, workloads: Sequence[Workload]) -> bool | None:
        there = [w.name in self.m.copies for w in workloads]
        return True if all(there) else None if any(there) else False

    def kill(self, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            if workload.name in self.m.copies:
                self.m.act(f"end {workload.name}")
                if self.m.lock != "both":
                    self.m.violate(f"{workload.name} was ended with an open network: RST")
                del self.m.copies[workload.name]

    def thaw_restored(self, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            self.m.act(f"let {workload.name} run")
            if self.m.thaw_failures and not self.m.probing:
                self.m.thaw_failures -= 1
                raise KupgradeError("The workloads could not be thawed")
            copy = self.m.copies.get(workload.name)
            if copy is not None:
                copy.stopped = copy.frozen = False

    def running(self, workloads: Sequence[Workload]) -> bool | None:
        return all(w.name in self.m.copies and self.m.copies[w.name].running for w in workloads)


class Freezer(_Port):
    def frozen(self, workload: Workload) -> bool | None:
        copy = self.m.copies.get(workload.name)
        return None if copy is None else copy.frozen

    def freeze(self, workload: Workload) -> None:
        self.m.act(f"freeze {workload.name}")
        if not self.m.gate_passed:
            self.m.violate("frozen although the gate never said yes")
        self.m.copies[workload.name].frozen = True

    def thaw(self, workload: Workload) -> None:
        self.m.act(f"thaw {workload.name}")
        if workload.name in self.m.copies:
            self.m.copies[workload.name].frozen = False

    def pids(self, workload: Workload) -> tuple[int, ...]:
        return workload.pids if workload.name in self.m.copies else ()


class Network(_Port):
    def lock(self, workloads: Sequence[Workload], *, both: bool) -> None:
        self.m.act("lock next boots")
        self.m.lock_file = True
        self.m.act("lock")
        self.m.lock = "both" if both else "input"

    def locked(self) -> bool | None:
        return bool(self.m.lock)

    def unlock(self) -> None:
        self.m.act("unlock")
        self.m.lock = ""
        self.m.act("unlock next boots")
        self.m.lock_file = False

    def kick(self, store: Store, workloads: Sequence[Workload]) -> int:
        self.m.act("kick")
        return 1


class Units(_Port):
    def hold(self, workload: Workload, upgrade: str, timeout: int) -> None:
        self.m.act(f"hold {workload.name}")
        self.m.holds.add(workload.name)

    def held(self, workload: Workload) -> bool:
        return workload.name in self.m.holds

    def release(self, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            self.m.act(f"release {workload.name}")
            if workload.name in self.m.holds and self.m.boots > 1:
                self.m.stale_units.add(workload.name)
            self.m.holds.discard(workload.name)
        self.m.act("reload")
        self.m.stale_units.clear()
        # daemon-reload: start jobs that waited for the agent now start the units' own programs.
        for name in sorted(self.m.pending):
            self.m.pending.discard(name)
            self.m.cold_start(name)

    def adopted(self, workload: Workload) -> str:
        copy = self.m.copies.get(workload.name)
        return "" if copy is not None and copy.adopted else "not its unit's"

    def active(self) -> tuple[str, ...]:
        return tuple(sorted(self.m.active))

    def stop(self, units: Sequence[str]) -> None:
        for unit in units:
            self.m.act(f"stop {unit}")
            self.m.active.discard(unit)

    def start(self, units: Sequence[str]) -> None:
        for unit in units:
            self.m.act(f"start {unit}")
            self.m.active.add(unit)


class Boot(_Port):
    def default(self) -> str:
        return self.m.default()

    def stored(self) -> str | None:
        return self.m.stored_default

    def restore_default(self, stored: str | None) -> None:
        self.m.act("restore boot default")
        self.m.stored_default = stored

    def set_default(self, entry: str) -> None:
        self.m.act("set boot default")
        self.m.stored_default = entry

    def entry_for(self, release: str) -> str:
        return NEW_ENTRY if release == self.m.plan.new_release else OLD_ENTRY


class Crossing(_Port):
    def stage(self, initrd: str, out: str, pid_floor: int, deadline: int) -> None:
        self.m.act(f"stage {out}")
        self.m.initrds[out] = deadline

    def staged(self, out: str) -> bool:
        return out in self.m.initrds

    def unstage(self, out: str) -> None:
        self.m.act(f"unstage {out}")
        self.m.initrds.pop(out, None)

    def load(self, kernel: str, initrd: str, cmdline: str) -> None:
        self.m.act(f"load {kernel}")
        if initrd not in self.m.initrds:
            raise KupgradeError("The initrd is missing", initrd)
        self.m.loaded = Loaded(kernel, cmdline, self.m.initrds[initrd])

    def loaded(self) -> bool | None:
        return self.m.loaded is not None

    def unload(self) -> None:
        self.m.act("unload")
        self.m.loaded = None

    def cross(self) -> None:
        self.m.act("freeze file systems")
        self.m.filesystems_frozen = True
        self.m.act("jump")
        raise Crossed

    def thaw_filesystems(self) -> None:
        self.m.tick("thaw file systems")  # needs no intent: it changes nothing that anybody sees
        self.m.filesystems_frozen = False

    def arm_watchdog(self, seconds: int) -> str:
        self.m.act("arm watchdog")
        self.m.watchdog = self.m.behaviour.watchdog
        return "watchdog0" if self.m.watchdog else "none"

    def disarm_watchdog(self) -> None:
        self.m.act("disarm watchdog")
        self.m.watchdog = False

    def deadman(self) -> bool:
        return self.m.deadman

    def cancel_deadman(self) -> None:
        self.m.act("cancel dead-man timer")
        self.m.deadman = False

    def panic_timeout(self) -> int:
        return self.m.panic

    def set_panic_timeout(self, seconds: int) -> None:
        self.m.act("set kernel.panic")
        self.m.panic = seconds


class Health(_Port):
    def gate(self, workloads: Sequence[Workload], store: Store, allowances: Sequence[Allowance]) -> None:
        self.m.act("ask the gate")
        if self.m.behaviour.gate_says_no:
            raise KupgradeError("The gate says no")
        self.m.gate_passed = True

    def open_files(self, workload: Workload) -> tuple[FileState, ...]:
        return (FileState(workload.name, 1, 1, self.m.files[workload.name], 0, True),)

    def probe(self, workload: Workload) -> None:
        self.m.act(f"probe {workload.name}")
        copy = self.m.copies[workload.name]
        if self.m.lock != "both":
            self.m.violate(f"{workload.name} was probed with an open network")
        copy.stopped = copy.frozen = False
        self.m.probing = workload.name
        self.m.tick(f"probing {workload.name}")
        if self.m.behaviour.probe_fails:
            raise KupgradeError(f"{workload.name} is not healthy")
        self.m.probed.add(workload.name)

    def pause(self, workload: Workload) -> None:
        self.m.act(f"pause {workload.name}")
        if workload.name in self.m.copies:
            self.m.copies[workload.name].frozen = True
        self.m.probing = ""

    def take_back(self, files: Sequence[FileState]) -> None:
        for file in files:
            self.m.act(f"take back {file.path}")
            self.m.files[file.path] = file.size

    def facts(self) -> Mapping[str, str]:
        return {}

"""A model of one machine on which two kernels live at once; the code of both is the real one down to the mechanism.

What is real: the loop, the steps, machine/host.run, machine/handover, machine/carry_on, machine/standing, the commit in
machine/takeover, and in standby/takeover the agent's care for its child (see two_kernels_ports for what is replaced).
The old kernel's worker runs in the main thread, the new kernel's child in a second one; only one of them moves at a
time: the child goes one tick ahead whenever the old kernel sleeps, waits in vain, or stops it too late (`lag`).

Disk: from the mount of its snapshot until the merge all that the new kernel writes goes to a copy, which is lost when
that kernel ends. A tick is a point where something may strike, in either kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from kupgrade.model.plan import Plan
from kupgrade.model.record import Now, Record, RecordKind, State
from kupgrade.model.workload import Workload
from tests.fakes.machine import (
    ADMIN_PANIC,
    NEW_ENTRY,
    OPEN_INTENT,
    Behaviour,
    Copy,
    EndError,
    Image,
    Kill,
    Machine,
    _check_commit,
)

STEP = 0.03  # seconds that pass while somebody sleeps
TORN = "power was cut during the merge: the file system is in between"


class OldPanicked(EndError):
    """The old kernel is dead; whether the machine restarts says its kernel.panic."""


class OldLeft(EndError):
    """The old kernel has given everything and ended."""


class NewServes(EndError):
    """The child has ended after the commit; the old kernel is still there."""


class Stuck(EndError):
    """Nobody does anything any more."""


@dataclass(frozen=True)
class SpawnBehaviour(Behaviour):
    """What the host and its kernels are like, beyond a host for kexec."""

    silent: bool = False  # the new kernel never says hello
    admin_panic: int = ADMIN_PANIC  # kernel.panic of the old kernel
    retire_fails: bool = False
    torn: bool = False  # the merge is no single moment
    lag: int = 0  # ticks that the child still makes between the decision to stop its kernel and the end of that
    gap: int = 0  # ticks that it makes until a killed worker is there again


class Process:
    """The child: a thread that moves only in `resume`, until it pauses or ends."""

    def __init__(self, body: Callable[[], None]) -> None:
        self._body = body
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._doomed = False
        self.over = self.killed = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._doomed:
                self._body()
        except EndError:
            self.killed = True
        self.over = True
        self._back.release()

    def resume(self) -> None:
        self._go.release()
        self._back.acquire()

    def pause(self) -> None:
        """By the child itself."""
        if not self._doomed:
            self._back.release()
            self._go.acquire()
        if self._doomed:
            raise Kill

    def kill(self) -> None:
        """SIGKILL, or the end of its kernel."""
        if not self.over:
            self._doomed = self.killed = True
            self.resume()
        self.thread.join()


class RunDirectory:
    """A /run: it ends with its kernel."""

    def __init__(self, written: Callable[[str, str], None] | None = None) -> None:
        self.files: dict[str, str] = {}
        self.written = written

    def __truediv__(self, name: str) -> RunFile:
        return RunFile(self, name)

    def mkdir(self, **_: object) -> None:
        pass


@dataclass
class RunFile:
    """One file there, as much of a Path as is used."""

    parent: RunDirectory
    name: str

    def exists(self) -> bool:
        return self.name in self.parent.files

    def read_text(self) -> str:
        try:
            return self.parent.files[self.name]
        except KeyError:
            raise FileNotFoundError(self.name) from None

    def write_text(self, text: str) -> None:
        self.parent.files[self.name] = text
        if self.parent.written is not None:
            self.parent.written(self.name, text)

    def touch(self) -> None:
        self.write_text("")

    def unlink(self, *, missing_ok: bool = False) -> None:
        self.parent.files.pop(self.name, None)

    def with_suffix(self, suffix: str) -> RunFile:
        return RunFile(self.parent, self.name.rpartition(".")[0] + suffix)

    def replace(self, target: RunFile) -> None:
        self.parent.files[target.name] = self.parent.files.pop(self.name)


@dataclass
class Disk:
    """The root file system."""

    records: list[Record]
    files: dict[str, int]
    stored_default: str | None
    lock_file: bool = False
    holds: set[str] = field(default_factory=set)
    initrds: dict[str, int] = field(default_factory=dict)
    built: set[str] = field(default_factory=set)
    torn: bool = False

    def copy(self) -> Disk:
        return Disk(
            list(self.records), dict(self.files), self.stored_default, self.lock_file, set(self.holds),
            dict(self.initrds), set(self.built), self.torn,
        )  # fmt: skip


class Kernel:
    """One running kernel; what the ports of machine.py call the machine."""

    def __init__(self, box: Box, boot_id: str, release: str, ticket: str | None, panic: int) -> None:
        self.box, self.boot_id, self.release, self.ticket, self.panic = box, boot_id, release, ticket, panic
        self.plan, self.workloads, self.behaviour = box.plan, box.workloads, box.behaviour
        self.side = "new" if ticket else "old"
        self.alive = True
        self.run = RunDirectory()
        self.root = RunDirectory(self._sysctl)
        # Its memory.
        self.store_made = self.mounted = self.filesystems_frozen = self.gate_passed = self.summoned = False
        self.rounds: set[str] = set()
        self.images: dict[str, Image] = {}
        self.sealed_in: str | None = None
        self.lock = "both" if box.disk.lock_file and ticket is None else ""
        self.copies: dict[str, Copy] = {}
        self.pending: set[str] = set()
        self.stale_units: set[str] = set()
        self.active: set[str] = set()
        self.probed: set[str] = set()
        self.probing = ""
        self.pids_free = True
        self.deadman = self.watchdog = False
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
        self.box.connected[name] = True

    def now(self, _state: State) -> Now:
        return Now(self.boot_id, self.release, self.ticket, self.pids_free)


class Box:
    """The machine. `faults`: tick -> kind, see two_kernels_faults."""

    def __init__(
        self, plan: Plan, workloads: tuple[Workload, ...], services: tuple[str, ...], behaviour: SpawnBehaviour,
        faults: Mapping[int, str], planned: Record, strike: Callable[[Box, Kernel, str], None],
    ) -> None:  # fmt: skip
        self.plan, self.workloads, self.services, self.behaviour = plan, workloads, services, behaviour
        self.faults, self.strike = faults, strike
        self.violations: list[str] = []
        self.limits: list[str] = []
        self.trace: list[str] = []
        self.seen = {w.name: 10 for w in workloads}
        self.connected = {w.name: True for w in workloads}
        self.cold_starts: dict[str, int] = {}
        self.excused = False  # the machine was cut or has crashed
        self.unsaid = False  # so the journal has to say so
        self.boots = 1
        self.clock = 1000.0
        self.disk = Disk([planned], {w.name: 10 for w in workloads}, behaviour.stored_default)
        self.old = Kernel(self, plan.boot_id, plan.old_release, None, behaviour.admin_panic)
        self.old.copies = {w.name: Copy(10, 0) for w in workloads}
        self.old.active = set(services)
        self.new: Kernel | None = None
        self.current = self.old
        self.drivers: dict[str, Kernel | None] = {"disk": self.old, "net": self.old}
        self.told = self.flag = self.corrupt = False
        self.child: Process | None = None
        self.in_child = False
        self.pending: EndError | None = None  # strikes the old kernel's worker as soon as it moves
        self.idle = 0
        self.beats = 0
        self.beside: Any = None

    # -- kernels ---------------------------------------------------------------------------------------------------

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(k for k in (self.old, self.new) if k is not None and k.alive)

    def start_new(self, ticket: str, boot_id: str) -> None:
        self.new = Kernel(self, boot_id, self.plan.new_release, ticket, 0)
        self.told = self.flag = False

    def end_new(self) -> None:
        """Its CPUs are stopped: what it wrote to its own memory is lost."""
        if self.child is not None:
            self.child.kill()
            self.child = None
        if self.new is not None:
            self.new.alive = False
            self.drivers = {name: None if k is self.new else k for name, k in self.drivers.items()}

    def reset(self, *, injected: bool) -> None:
        """The whole machine starts again: firmware and boot loader choose."""
        if not injected:
            self.violate("the machine was restarted without a reason")
        if self.disk.torn:
            self.limits.append(TORN)
        self.end_new()
        self.new = None
        self.unsaid |= not any(r.kind is RecordKind.FINISHED for r in self.disk.records)
        self.excused = True
        self.connected = dict.fromkeys(self.connected, False)
        self.told = self.flag = self.corrupt = False
        self.pending = None
        self.boots += 1
        release = self.plan.new_release if (self.disk.stored_default or NEW_ENTRY) == NEW_ENTRY else None
        self.old = self.current = Kernel(
            self, f"boot-{self.boots}", release or self.plan.old_release, None, self.behaviour.admin_panic
        )
        self.old.active = set(self.services[:-1])
        self.drivers = {"disk": self.old, "net": self.old}
        self.beside = None
        for workload in self.workloads:
            if workload.name in self.disk.holds:
                self.old.pending.add(workload.name)
            else:
                self.old.cold_start(workload.name)

    # -- time ------------------------------------------------------------------------------------------------------

    def violate(self, text: str) -> None:
        self.violations.append(f"{text} (tick {len(self.trace)}, {self.trace[-1] if self.trace else 'start'})")

    def tick(self, kernel: Kernel, label: str) -> None:
        """Time passes, workloads work; then the fault of this tick strikes."""
        self.trace.append(f"{kernel.side}: {label}")
        self.work()
        kind = self.faults.get(len(self.trace))
        if kind is not None:
            self.strike(self, kernel, kind)
        if self.in_child and self.child is not None:
            self.child.pause()

    def step_child(self) -> None:
        """The child moves to its next tick; then what struck the old kernel meanwhile is felt."""
        child = self.child
        if child is None or child.over or self.new is None or self.new.hung or self.new.dead:
            self.clock += 1.0
            self.idle += 1
            if self.idle > 400:
                raise Stuck
            return
        before, self.current, self.in_child = self.current, self.new, True
        try:
            child.resume()
        finally:
            self.current, self.in_child = before, False
        self.feel()

    def feel(self) -> None:
        if self.pending is not None:
            end, self.pending = self.pending, None
            raise end

    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.child is not None and not self.child.over:
                self.step_child()

    def sleep(self, _seconds: float = 0.0) -> None:
        """By the old kernel's worker, or by the child."""
        self.clock += STEP
        if self.in_child and self.child is not None:
            self.clock += 0.0 if self.old.alive else 1.0
            self.idle += 1
            if self.idle > 4000:
                self.pending = Stuck()
            self.child.pause()
            return
        child = self.child
        if child is not None and child.over and not child.killed and self.flag:
            raise NewServes
        self.step_child()

    # -- work ------------------------------------------------------------------------------------------------------

    def work(self) -> None:
        for workload in self.workloads:
            name = workload.name
            running = [k for k in self.kernels if name in k.copies and k.copies[name].running and not k.dead]
            if len(running) > 1:
                self.violate(f"{name} runs in both kernels")
            for kernel in running:
                self._work(kernel, name)
            holder = self.drivers["net"]
            if holder is not None and not holder.lock and self.connected[name]:
                if name not in holder.copies:
                    self.violate(f"a packet for {name} met no process: RST")
                    self.connected[name] = False
                elif holder not in running and holder.alive and not holder.dead:
                    self.violate(f"{name} stands still and the network is not locked")
            if not self.excused and not any(name in k.copies for k in self.kernels):
                self.violate(f"{name} is gone")

    def _work(self, kernel: Kernel, name: str) -> None:
        copy = kernel.copies[name]
        new = self.new
        if kernel is self.old and new is not None:
            if self.flag:
                self.violate(f"the old copy of {name} runs after the commit flag")
            if self.told and new.alive:
                self.violate(f"the old copy of {name} runs while the new kernel is at work")
        if kernel is new and kernel.probing != name and (not kernel.committed or not self.flag or kernel.overlay):
            self.violate(f"{name} runs in the new kernel before its commit is on disk")
        if copy.generation < max(self.seen[name], kernel.files[name]):
            self.violate(
                f"output of {name} goes back: it runs from {copy.generation}, clients saw {self.seen[name]},"
                f" its file has {kernel.files[name]}"
            )
        if kernel.sealed_in == kernel.boot_id:
            self.violate(f"{name} runs beside a complete mark that its own dump wrote")
        copy.generation += 1
        kernel.write().files[name] = copy.generation
        if self.drivers["net"] is kernel and kernel.lock != "both":
            self.seen[name] = copy.generation


class SpawnLog:
    """The journal, as a process in one kernel sees it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self.kernel.disk.records)

    @property
    def next_seq(self) -> int:
        return len(self.kernel.disk.records) + 1

    def append(self, record: Record) -> None:
        kernel = self.kernel
        step = "" if record.step is None else kernel.plan.steps[record.step].kind
        label = f"{record.kind.value} {step}".strip()
        kernel.tick(f"before record: {label}")
        kernel.write().records.append(record)
        if record.kind is RecordKind.COMMITTED:
            _check_commit(cast(Machine, kernel))
        kernel.tick(f"after record: {label}")

    def close(self) -> None:
        pass


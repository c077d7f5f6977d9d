"""A model of one machine on which two kernels live at once; the code of both is the real one down to the mechanism.

What is real: the loop, the steps, machine/host.run, machine/handover, standby/carry_on, machine/standing, the commit in
machine/takeover, and in standby/takeover the agent's care for its child (two_kernels_ports says what is replaced).
The old kernel's worker runs in the main thread, the new kernel's child in a second one; only one of them moves at a
time: the child goes one tick ahead whenever the old kernel sleeps, waits in vain, or stops it too late (`lag`).

Disk: from the mount of its snapshot until the merge all that the new kernel writes goes to a copy, which is lost when
that kernel ends. A tick is a point where something may strike, in either kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kupgrade.model.plan import Plan
from kupgrade.model.record import Record, RecordKind
from kupgrade.model.workload import Workload
from tests.fakes.endings import NEW_ENTRY, Copy, EndError
from tests.fakes.hooks import Outside
from tests.fakes.stopping import started_by_boot
from tests.fakes.two_kernels_kernel import Kernel
from tests.fakes.two_kernels_parts import Disk, NewServes, Process, SpawnBehaviour, Stuck

STEP = 0.03  # seconds that pass while somebody sleeps
TORN = "power was cut during the merge: the file system is in between"
BOX: list[Box] = []  # the machine of the run under way


def box() -> Box:
    """The machine of the run under way."""
    return BOX[-1]


class Box:
    """The machine. `faults`: tick -> kind, see drive_spawn.strike."""

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
        self.old.watched = {w.name: w.watchdog for w in workloads if w.watchdog}
        self.old.active = set(services)
        self.new: Kernel | None = None
        self.current = self.old
        self.drivers: dict[str, Kernel | None] = {"disk": self.old, "net": self.old}
        self.told = self.flag = self.corrupt = False
        self.child: Process | None = None
        self.in_child = False
        self.pending: EndError | None = None  # strikes the old kernel's worker as soon as it moves
        self.told_at = self.dark = 0.0  # when the new kernel was told to take over; seconds until it was stopped
        self.idle = self.beats = 0
        self.failed, self.given = 0, False  # retirements; the last buses
        self.beside: Any = None
        self.outside = Outside()

    # -- kernels ---------------------------------------------------------------------------------------------------

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        old, new = self.old, self.new
        if new is None or not new.alive:
            return (old,) if old.alive else ()
        return (old, new) if old.alive else (new,)

    def start_new(self, ticket: str, boot_id: str) -> None:
        self.new = Kernel(self, boot_id, self.plan.new_release, ticket, 0)
        self.told = self.flag = False

    def end_new(self) -> None:
        """Its CPUs are stopped: what it wrote to its own memory is lost."""
        if self.child is not None:
            self.child.kill()
            self.child = None
        if self.new is not None:
            if self.told and self.new.alive:
                self.dark = self.clock - self.told_at
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
        self.disk.crash()
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
        self.old.active = started_by_boot(self.services, self.disk.down)
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
        self.idle = 0
        self.work()
        if self.new is not None and self.new.alive:
            self.new.filling.work()
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
            self.clock += 1.0
            self.idle += 1
            if self.idle > 1000:
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
            for kernel in self.kernels:
                if name in kernel.watched and kernel not in running and not kernel.dead and name in kernel.copies:
                    self.violate(f"the {kernel.side} kernel's systemd hears nothing of {name} and kills it")
            holder = self.drivers["net"]
            if holder is not None and not holder.lock and self.connected[name]:
                if name not in holder.copies:
                    self.violate(f"a packet for {name} met no process: RST")
                    self.connected[name] = False
                elif holder not in running and holder.alive and not holder.dead:
                    self.violate(f"{name} stands still and the network is not locked")
            if not self.excused and not any(name in k.copies or k.restorable(name) for k in self.kernels):
                self.violate(f"{name} is gone: no copy, no checkpoint")

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

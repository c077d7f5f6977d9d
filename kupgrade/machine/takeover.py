"""The port `Takeover`: the new kernel makes the host its own, once it may."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.host.systemd import Systemd
from kupgrade.kernel import kspawn, proc, sysctl
from kupgrade.kernel.libc import Libc
from kupgrade.kernel.shared_window import SharedWindow
from kupgrade.kernel.window import Side
from kupgrade.machine import going_home, new_root, sandbox, standing, starter, streams
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.places import Places
from kupgrade.model.handover import Stage
from kupgrade.model.ids import TICKET_PARAMETER, Ticket
from kupgrade.model.spawn import WINDOW_PARAMETER, parse_range
from kupgrade.model.standby import INHERITED_FILE
from kupgrade.model.standby import Stage as InheritedStage
from kupgrade.model.workload import Workload

MERGE_PATIENCE = 60.0  # seconds
JOURNAL_PATIENCE = 60.0
START = "start-system"  # in Places.run: the first process waits for it
POLL = 0.02


@dataclass
class RealTakeover:
    """This kernel, as it came up beside another. `uuid`: of the root file system."""

    places: Places
    libc: Libc
    systemd: Systemd
    checkpoints: RealCheckpoints
    uuid: str

    def give_up(self, reason: str) -> None:
        """See the port."""
        standing.fail(self.places, reason)
        while True:
            time.sleep(3600)

    def take_disk(self) -> float:
        """See the port. The flag first; then everything that was written since must be on disk before it is used.

        What goes to the disk before the flag is of no meaning to the old kernel, nor to any that mounts it: see redo.
        """
        made = new_root.prepare(self.libc, self.uuid, self.places.run)
        try:
            with self._window() as window:
                window.channel.declare_commit()
            megabytes = new_root.merge(self.libc, self.uuid, MERGE_PATIENCE, made)
        finally:
            going_home.thaw(self.libc)
        self.libc.syncfs(self.places.state)
        return megabytes

    def _window(self) -> SharedWindow:
        line = proc.cmdline(self.places.root)
        ticket, where = line.get(TICKET_PARAMETER), line.get(WINDOW_PARAMETER)
        if ticket is None or where is None:
            raise KupgradeError("This kernel was not started beside another one", "its command line names no window")
        found = Ticket.parse(ticket)
        device = kspawn.open_device(self.places.root)
        try:
            return SharedWindow.open(device, parse_range(where), Side.NEW, found.upgrade, found.epoch)
        finally:
            device.close()

    def disk_taken(self) -> bool | None:
        """See the port."""
        return new_root.merged()

    def start_system(self, workloads: Sequence[Workload], timeout: float) -> None:
        """See the port. The journal of that system takes the streams over that were made for the restore."""
        offered = streams.offer(self.places.run, workloads)
        (self.places.run / START).touch()
        self.systemd.await_manager(timeout)
        if offered is not None and streams.settle(offered, JOURNAL_PATIENCE):
            self.systemd.reload()

    def system_runs(self) -> bool:
        """See the port."""
        return self.systemd.running

    def adopt(self, workloads: Sequence[Workload], timeout: float) -> None:
        """See the port. Each unit's start process is put into the unit's cgroup by systemd and ends when told."""
        deadline = time.monotonic() + timeout
        mine = [w for w in workloads if w.unit and not self.checkpoints.adopted_yet(w)]
        for workload in mine:
            starter.open_for_start(self.places, workload.name)
        if mine:
            self.systemd.start([w.unit for w in mine], now=True)
        for workload in mine:
            self._await_starter(workload, deadline)
            starter.pidfile_path(self.places, workload.name).write_text(f"{workload.root_pid}\n")
            if not starter.open_gate(self.places, workload.name, 0, starter.GATE_PATIENCE):
                raise KupgradeError(f"{workload.unit} did not adopt its process", "its start process went away")
        for workload in mine:
            _await(partial(self.checkpoints.adopted_yet, workload), deadline, f"{workload.unit} did not adopt")

    def _await_starter(self, workload: Workload, deadline: float) -> None:
        """See sandbox: inside of one it cannot say who it is."""
        failed = f"systemd did not start {workload.unit}"
        if not workload.sandbox:
            _await(starter.pid_path(self.places, workload.name).exists, deadline, failed)
        elif not sandbox.await_starter(workload.cgroup, starter.gate_path(self.places, workload.name), deadline):
            raise KupgradeError(failed, "its time is over")

    def retire(self, ports: Sequence[str], timeout: float, panic: int) -> dict[str, float | int | str]:
        """See the port."""
        if self.retired() is not True:
            standing.put(self.places, Stage.RETIRE, ports=tuple(ports))
        deadline = time.monotonic() + timeout
        while self.retired() is not True:
            if time.monotonic() > deadline:
                return self._unretired(timeout, panic)
            time.sleep(POLL)
        sysctl.set_panic_timeout(panic, self.places.root)
        return {"retired": 1, **{k: v for k, v in self._inherited().items() if isinstance(v, int | float | str)}}

    def retired(self) -> bool | None:
        """See the port."""
        return bool(self._inherited().get("stage") == InheritedStage.DONE.value)

    def _inherited(self) -> dict[str, Any]:
        """What the agent tells of it; nothing as long as the old kernel has not left."""
        path = self.places.root / INHERITED_FILE
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        return found

    def _unretired(self, timeout: float, panic: int) -> dict[str, float | int | str]:
        """Which of the two it is that takes too long. One that has left cannot be hurt by a restart any more."""
        found = self._inherited()
        if not found:
            return {"retired": 0, "why": f"the old kernel did not leave within {timeout:g} s"}
        sysctl.set_panic_timeout(panic, self.places.root)
        why = f"the old kernel has left, but not all of its CPUs and memory has come within {timeout:g} s"
        return {"retired": 0, "why": f"{why}: {found.get('doing', 'unknown')}"}


def _await(there: Callable[[], bool], deadline: float, what: str) -> None:
    while not there():
        if time.monotonic() > deadline:
            raise KupgradeError(what, "its time is over")
        time.sleep(POLL)

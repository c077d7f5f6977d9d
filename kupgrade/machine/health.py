"""The port `Health`: the gate, probes behind the lock, and taking appended bytes back."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.core.allocate import WINDOW
from kupgrade.errors import KernelError, KupgradeError, NeedsHumanError, OverBudgetError
from kupgrade.host import command, nft
from kupgrade.kernel import cgroup, process
from kupgrade.machine import copies
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.images import store_of
from kupgrade.machine.places import Places
from kupgrade.model.plan import Allowance, Plan
from kupgrade.model.schedule import Terms
from kupgrade.model.workload import FileState, Probe, ProbeKind, Store, Workload

_INTERVAL = 0.1  # seconds between tries
_PAUSE_TIMEOUT = 10.0


@dataclass
class RealHealth:
    """Probes on this machine."""

    places: Places
    checkpoints: RealCheckpoints
    leave: Callable[[], None] = lambda: None  # raises when the policy says no
    pid_floor: int = 0  # the first PID of the next boot; 0: unknown

    def gate(self, workloads: Sequence[Workload], store: Store, allowances: Sequence[Allowance]) -> None:
        """Raises when anything is not as planned; changes nothing.

        The last pre-dump round is what the final dump will at least take. Without one the prediction stands.
        """
        for workload in workloads:
            check_processes(workload, copies.tree(workload), self.pid_floor)
            ask(workload.probe, workload.name)
        for allowance in allowances:
            check_budget(allowance, self.checkpoints.round_seconds.get(allowance.workload))
        free, held = store_of(store).free_bytes(), store_of(store).used_bytes()
        if free < held // 4:
            raise KupgradeError(
                "The image store is nearly full",
                f"{free >> 20} MiB free, {held >> 20} MiB of images so far",
                "Choose a larger store",
            )
        self.leave()
        self.checkpoints.prime(workloads)

    def open_files(self, workload: Workload) -> tuple[FileState, ...]:
        """Regular files open for writing, by path."""
        found: dict[tuple[int, int], FileState] = {}
        (dumped,) = self.checkpoints.as_dumped((workload,))
        for pid in dumped.pids:
            for fd in process.fds(pid):
                if fd.kind is process.FdKind.FILE and fd.flags & os.O_ACCMODE != os.O_RDONLY:
                    found[fd.device, fd.inode] = FileState(
                        fd.name, fd.device, fd.inode, fd.size, fd.mtime_ns, bool(fd.flags & os.O_APPEND)
                    )
        return tuple(found.values())

    def probe(self, workload: Workload) -> None:
        """Run it behind the lock, its ports open on lo, until its probe answers."""
        if workload.probe.kind is ProbeKind.NONE:
            return
        nft.open_loopback(workload.tcp_ports, workload.udp_ports)
        self.checkpoints.thaw_restored((workload,))
        ask(workload.probe, workload.name)

    def pause(self, workload: Workload) -> None:
        """Freeze its cgroup; a thaw of the restored copy ends that, too."""
        if workload.probe.kind is ProbeKind.NONE or not cgroup.exists(workload.cgroup):
            return
        cgroup.freeze(workload.cgroup, _PAUSE_TIMEOUT)
        nft.open_loopback((), ())

    def take_back(self, files: Sequence[FileState]) -> None:
        """Cut appended bytes off."""
        for file in files:
            take_back(file)

    def facts(self) -> dict[str, str]:
        """Nothing yet that the plan does not hold."""
        return {}


def ask_leave(plan: Plan, terms: Terms, places: Places) -> None:
    """Raise unless the policy lets `plan` go on now."""
    from kupgrade.machine import leave  # time zones and TOML: the agent of the next boot needs none of it

    leave.require(plan, terms, places.root)


def check_processes(workload: Workload, found: Sequence[int], pid_floor: int) -> None:
    """Raise unless its main process is there, and all of `found` have PIDs that the next boot keeps free.

    Others may have begun or ended since the plan, as one does with each connection to some servers.
    """
    if workload.root_pid not in found:
        why = f"planned {workload.root_pid}, found {few(found)}"
        raise KupgradeError(f"{workload.name} has another main process than planned", why, "Plan again")
    late = [pid for pid in found if pid_floor and pid_floor <= pid < pid_floor + WINDOW]
    if late:
        why = f"the next boot begins with PID {pid_floor}, and {few(late)} began since the plan"
        raise KupgradeError(f"{workload.name} has PIDs that the next boot may need", why, "Plan again")


def check_budget(allowance: Allowance, measured: float | None) -> None:
    """Raise OverBudgetError when the last round (seconds; None: not measured) took longer than the dump may."""
    if measured is None or measured <= allowance.seconds:
        return
    raise OverBudgetError(
        f"The blackout of {allowance.workload} would exceed its limit of {allowance.limit:g} s",
        f"copying what changed last took {measured:.2f} s; with the rest predicted, {allowance.seconds:.2f} s are left",
        "Upgrade when it changes less memory, or raise max_blackout",
    )


def take_back(file: FileState) -> None:
    """Make `file` what it was: unchanged, or cut to its old size. Raises NeedsHumanError for any other change."""
    path = Path(file.path)
    try:
        info = path.stat()
    except FileNotFoundError:
        raise NeedsHumanError(f"{path} was removed while its workload was probed", "it cannot be taken back") from None
    if info.st_ino != file.inode:
        raise NeedsHumanError(f"{path} was replaced while its workload was probed", "it cannot be taken back")
    if info.st_size == file.size and info.st_mtime_ns == file.mtime_ns:
        return
    if not file.append_only or info.st_size < file.size:
        raise NeedsHumanError(
            f"{path} was changed while its workload was probed",
            "only appended bytes can be taken back",
            "Compare the file with a backup; the checkpoint images are kept",
        )
    with path.open("r+b") as opened:
        opened.truncate(file.size)
        os.fsync(opened.fileno())
    os.utime(path, ns=(info.st_atime_ns, file.mtime_ns))


def ask(probe: Probe, name: str) -> None:
    """Raise KupgradeError unless the probe answers within its timeout."""
    deadline = time.monotonic() + probe.timeout
    while True:
        why = _once(probe, max(0.1, deadline - time.monotonic()))
        if not why:
            return
        if time.monotonic() >= deadline:
            raise KupgradeError(f"{name} is not healthy", why, "See its log")
        time.sleep(_INTERVAL)


def _once(probe: Probe, left: float) -> str:
    match probe.kind:
        case ProbeKind.NONE:
            return ""
        case ProbeKind.TCP:
            try:
                socket.create_connection(("localhost", probe.port), left).close()
            except OSError as error:
                return f"port {probe.port}: {error}"
            return ""
        case ProbeKind.HTTP:
            url = f"http://localhost:{probe.port}{probe.path}"
            # No urllib: it would ask a proxy that the environment names, and follow a redirection to other hosts.
            connection = http.client.HTTPConnection("localhost", probe.port, timeout=left)
            try:
                connection.request("GET", probe.path)
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                return f"{url}: {error!r:.200}"
            finally:
                connection.close()
            return "" if status < 400 else f"{url}: status {status}"
        case ProbeKind.COMMAND:
            try:
                done = command.run(probe.command, timeout=left, check=False)
            except KupgradeError as error:
                return str(error)
            return "" if done.status == 0 else f"{probe.command[0]}: exit status {done.status}"


def few(pids: Sequence[int]) -> str:
    """The first of them, as a text."""
    return " ".join(str(pid) for pid in pids[:8]) + (" …" if len(pids) > 8 else "") or "none"


def gone(error: KernelError) -> bool:
    """Whether the process that was asked about has ended."""
    return error.errno in (2, 3)

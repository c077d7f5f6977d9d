"""The processes of a workload's copy: which there are, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import cgroup, proc
from kupgrade.model.workload import Workload

_POLL = 0.005  # seconds
_PATIENCE = 10.0  # seconds


def belongs(pid: int, workload: Workload) -> bool:
    """Whether a process lives and is in the workload's cgroup."""
    try:
        found = proc.process(pid)
    except KernelError:
        return False
    return found.state not in "ZX" and (found.cgroup + "/").startswith(workload.cgroup + "/")


def tree(workload: Workload) -> tuple[int, ...]:
    """The processes in its cgroup now. Raises KupgradeError when one does not descend from its main process."""
    found: dict[int, int] = {}
    for pid in cgroup.members(workload.cgroup):
        try:
            found[pid] = proc.process(pid).ppid
        except KernelError as error:
            if error.errno not in proc.GONE:  # it has ended meanwhile
                raise
    strangers = [pid for pid in found if pid != workload.root_pid and found[pid] not in found]
    if strangers:
        few = " ".join(map(str, strangers[:8]))
        why = f"not descendants of process {workload.root_pid}: {few}"
        raise KupgradeError(f"{workload.name} is not one tree of processes", why, "End them, or plan again")
    return tuple(sorted(found))


def send(pid: int, number: signal.Signals) -> None:
    """A signal, to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def end(workloads: Sequence[Workload]) -> None:
    """SIGKILL to the processes that were dumped, and wait for it. Raises KupgradeError."""
    deadline = time.monotonic() + _PATIENCE
    while there := [pid for workload in workloads for pid in workload.pids if belongs(pid, workload)]:
        if time.monotonic() > deadline:
            raise KupgradeError("Restored copies could not be ended", f"SIGKILL had no effect in {_PATIENCE:g} s")
        for pid in there:  # again: half a tree may have forked meanwhile
            send(pid, signal.SIGKILL)
        time.sleep(_POLL)


def end_all_of(workload: Workload) -> None:
    """SIGKILL to every process in its cgroup, also such as it forked since."""
    with contextlib.suppress(KernelError):
        for pid in cgroup.members(workload.cgroup):
            send(pid, signal.SIGKILL)

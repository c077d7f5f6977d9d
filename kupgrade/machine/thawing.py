"""Restored workloads run: what stopped them is taken away, and what they were before is what they are then."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import cgroup, proc
from kupgrade.machine import copies, dumping
from kupgrade.model.workload import Store, Workload

_TIMEOUT = 10.0  # seconds


def thaw(store: Store | None, workloads: Sequence[Workload]) -> None:
    """SIGCONT to every process, children first so that no parent waits for a stopped child; then the cgroup.

    Those that somebody had stopped before the dump stay so.
    A probe leaves the cgroup frozen, so that the processes are no longer stopped by a signal but do not run either.
    One that does not thaw keeps no other from it. `store`: of the images; None: there are none. Raises KupgradeError.
    """
    failed: KupgradeError | None = None
    for workload in (dumping.as_dumped(store, each) for each in workloads):
        for pid in _to_run(store, workload):
            copies.send(pid, signal.SIGCONT)
        if cgroup.state(workload.cgroup) in (cgroup.FreezerState.FROZEN, cgroup.FreezerState.FREEZING):
            try:
                cgroup.thaw(workload.cgroup, _TIMEOUT)
            except KupgradeError as error:
                failed = failed or error
    if failed is not None:
        raise failed


def _to_run(store: Store | None, workload: Workload) -> tuple[int, ...]:
    """Processes as dumped, but those that were stopped then."""
    return tuple(sorted({*workload.pids} - {*dumping.stopped_in(store, workload)}, reverse=True))


def running(store: Store | None, workloads: Sequence[Workload]) -> bool | None:
    """None stopped that was not, or frozen; what is no main process may have ended since it runs. None: unknown."""
    states = []
    for workload in (dumping.as_dumped(store, each) for each in workloads):
        for pid in _to_run(store, workload):
            try:
                states.append(proc.process(pid).state)
            except KernelError as error:
                if pid == workload.root_pid or error.errno not in proc.GONE:
                    return False
    frozen = [cgroup.state(w.cgroup) for w in workloads]
    if cgroup.FreezerState.UNKNOWN in frozen:
        return None
    return not any(state in "Tt" for state in states) and cgroup.FreezerState.FROZEN not in frozen

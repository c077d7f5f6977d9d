"""What runs at this moment, as the decision what to do next needs it, and the time."""

from __future__ import annotations

import time

from kupgrade.errors import KernelError
from kupgrade.kernel import proc
from kupgrade.machine.dumping import pids_in
from kupgrade.machine.images import RealImages
from kupgrade.machine.places import Places
from kupgrade.machine.planned import carried_images, image_store
from kupgrade.model.ids import TICKET_PARAMETER
from kupgrade.model.record import Now, State


class SystemClock:
    """CLOCK_REALTIME and CLOCK_BOOTTIME."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def uptime(self) -> float:
        """Seconds since boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def observe_now(state: State, places: Places, images: RealImages | None = None) -> Now:
    """What runs at this moment; `pids_free` only matters, and is only asked, in a fallen-back boot."""
    try:
        ticket = proc.cmdline(places.root).get(TICKET_PARAMETER)
    except KernelError:
        ticket = None
    free: bool | None = None
    if state.fell_back:
        free = _pids_free(state, places)
    boot = proc.boot_id(places.root)
    carried = carried_images(state.plan) if boot != state.plan.boot_id else None
    came = None if carried is None else (images or RealImages()).came(carried)
    return Now(boot, str(proc.release(places.root)), ticket, free, came)


def _pids_free(state: State, places: Places) -> bool | None:
    """Whether every PID is unused, or used by the workload itself (restored already, not yet recorded)."""
    for pid in pids_in(image_store(state.plan)) or state.plan.workload_pids:
        try:
            if proc.free_of((pid,), places.root):
                continue
            found = proc.process(pid, places.root).cgroup
        except KernelError:
            return None
        if found not in state.plan.workload_cgroups:
            return False
    return True

"""All ports of this machine together, and the loop run on them."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kupgrade.core.allocate import pid_floor
from kupgrade.core.fold import fold
from kupgrade.core.stakes import CROSS, DUMP, HAND_OVER, STAGE_INITRD, jump_cut_short, step_index
from kupgrade.errors import KernelError, KupgradeError, NeedsHumanError
from kupgrade.executor import Loop, advance
from kupgrade.host import command
from kupgrade.host.systemd import Systemd
from kupgrade.journal import Journal
from kupgrade.kernel import cgroup, proc
from kupgrade.kernel.libc import Libc
from kupgrade.machine import blackout, faults
from kupgrade.machine.after import RealAfter
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.crossing import RealCrossing
from kupgrade.machine.dumping import pids_in
from kupgrade.machine.health import RealHealth, ask_leave
from kupgrade.machine.images import RealImages
from kupgrade.machine.network import RealNetwork
from kupgrade.machine.places import Places
from kupgrade.machine.units import RealBoot, RealFreezer, RealUnits
from kupgrade.model.codec import decode, learn
from kupgrade.model.ids import TICKET_PARAMETER
from kupgrade.model.plan import Plan
from kupgrade.model.record import Now, Record, State
from kupgrade.model.schedule import ORDINARY, Terms
from kupgrade.model.workload import Store
from kupgrade.steps import registry
from kupgrade.steps.base import learn_all

if TYPE_CHECKING:
    from kupgrade.machine.beside import RealBeside
    from kupgrade.machine.descriptors import RealDescriptors
    from kupgrade.machine.handover import RealHandover
    from kupgrade.machine.hooks import RealHooks
    from kupgrade.machine.stopping import RealStopping
    from kupgrade.machine.takeover import RealTakeover

registry.load_all()


@dataclass
class RealHost:
    """The ports that steps name, and the two ways to another boot."""

    plan: Plan
    images: RealImages
    checkpoints: RealCheckpoints
    freezer: RealFreezer
    network: RealNetwork
    units: RealUnits
    boot: RealBoot
    crossing: RealCrossing
    health: RealHealth
    after: RealAfter
    places: Places

    @functools.cached_property
    def beside(self) -> RealBeside:
        """A kernel beside this one. Imported when it is asked for: the agent of the next boot needs none of it."""
        from kupgrade.machine.beside import RealBeside

        return RealBeside(self.places)

    @functools.cached_property
    def handover(self) -> RealHandover:
        """To a kernel beside this one."""
        from kupgrade.machine.handover import RealHandover

        return RealHandover(self.places, self.crossing.libc, self.beside)

    @functools.cached_property
    def takeover(self) -> RealTakeover:
        """From a kernel beside this one."""
        from kupgrade.machine.takeover import RealTakeover

        uuid = next((str(s.params["uuid"]) for s in self.plan.steps if s.kind == HAND_OVER), "")
        return RealTakeover(self.places, self.crossing.libc, self.checkpoints.systemd, self.checkpoints, uuid)

    @functools.cached_property
    def descriptors(self) -> RealDescriptors:
        """Descriptor stores."""
        from kupgrade.host.descriptor_store import Stores
        from kupgrade.machine.descriptors import RealDescriptors

        return RealDescriptors(self.places, self.checkpoints.systemd, Stores(self.places.root))

    @functools.cached_property
    def stopping(self) -> RealStopping:
        """Units that stand still."""
        from kupgrade.machine.stopping import RealStopping

        return RealStopping(self.checkpoints.systemd)

    @functools.cached_property
    def hooks(self) -> RealHooks:
        """The operator's programs."""
        from kupgrade.machine.hooks import RealHooks

        return RealHooks(self.plan)

    def go_back(self) -> None:
        """From the new kernel to the old release, by kexec, else by an ordinary restart."""
        self._jump_back(self.plan)

    def reenter(self, plan: Plan) -> None:
        """The old release once more, with the workloads' PIDs kept free."""
        self._jump_back(plan)

    def _jump_back(self, plan: Plan) -> None:
        cross = next((spec.params for spec in plan.steps if spec.kind == "cross"), None)
        if cross is None:
            raise NeedsHumanError("The plan has no crossing to go back over", "it was written by another release")
        fetch_descriptors(self, plan)
        self.crossing.jump(cross["back_kernel"], cross["back_initrd"], cross["back_cmdline"])


def compose(plan: Plan, places: Places, terms: Terms = ORDINARY) -> RealHost:
    """The real ports for one plan, begun on these terms."""
    systemd = Systemd(places.root)
    checkpoints = RealCheckpoints(
        places, systemd, network_timeout=plan.network_timeout, store=image_store(plan), new_release=plan.new_release
    )
    return RealHost(
        plan=plan,
        images=RealImages(),
        checkpoints=checkpoints,
        freezer=RealFreezer(),
        network=RealNetwork(places, plan.network),
        units=RealUnits(places, systemd),
        boot=RealBoot(places),
        crossing=RealCrossing(places, Libc()),
        health=RealHealth(places, checkpoints, lambda: ask_leave(plan, terms, places), staged_floor(plan)),
        after=RealAfter(places),
        places=places,
    )


def image_store(plan: Plan) -> Store | None:
    """Where the plan has its images; None: it dumps nothing."""
    found = next((spec.params["store"] for spec in plan.steps if spec.kind == DUMP), None)
    return None if found is None else decode(Store, found, "dump.store")


def staged_floor(plan: Plan) -> int:
    """The first PID of the next boot's processes; 0: the plan does not tell."""
    return next((int(spec.params["pid_floor"]) for spec in plan.steps if spec.kind == STAGE_INITRD), 0)


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


def carried_images(plan: Plan) -> Store | None:
    """The store whose images pass from kernel to kernel in memory, if the plan has one."""
    found = next((spec.params.get("carried") for spec in plan.steps if spec.kind == CROSS), None)
    return None if found is None else decode(Store, found, "cross.carried")


def carried_descriptors(plan: Plan) -> str:
    """The session of stored descriptors that pass from kernel to kernel; empty for none."""
    return next((str(spec.params.get("descriptors", "")) for spec in plan.steps if spec.kind == CROSS), "")


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


def run(journal: Journal, *, root: Path, watch: Callable[[Record, State], None], leaves: Collection[str] = ()) -> State:
    """Advance what is in `journal` on this machine as far as it goes here; steps of a kind in `leaves` are left."""
    places = Places(root)
    places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = fold(journal.records)
    plan = state.plan
    host = compose(plan, places, state.terms)
    if proc.boot_id(root) != state.boot_id:
        # Before anybody asks whether the PIDs are free: what is free now must be free when the restore comes to it.
        keep_pids_free(plan.workload_pids, root)
    elif not state.crossed:
        learn_ahead()
    _fetch_carried(host, state, places.root)
    if jump_cut_short(state):
        # A worker killed between the freeze of the file systems and the jump: nothing can be recorded before the thaw.
        if step_index(state, HAND_OVER) is not None and not state.crossed:
            host.handover.settle()
        host.crossing.thaw_filesystems()

    def seen(record: Record, state: State) -> None:
        watch(record, state)
        if (note := blackout.note(journal, plan, record, state, places)) is not None:
            watch(note, state)

    loop = Loop(
        log=journal,
        host=host,
        now=lambda state: observe_now(state, places, host.images),
        clock=SystemClock(),
        faults=lambda step, moment: faults.strike(places, step, moment),
        watch=seen,
        interrupted=lambda: _rollback_requested(places),
        leaves=frozenset(leaves),
    )
    return advance(loop, state)


def _fetch_carried(host: RealHost, state: State, root: Path) -> None:
    """What an earlier kernel had to hand over: fetched before anything is decided that depends on it."""
    carried, stored = carried_images(state.plan), carried_descriptors(state.plan)
    if not (carried or stored) or state.committed or proc.boot_id(root) == state.plan.boot_id:
        return
    if carried is not None:
        with contextlib.suppress(KupgradeError):  # what it means that they are not there is decided by the journal
            host.images.prepare(carried)
    fetch_descriptors(host, state.plan)


def fetch_descriptors(host: RealHost, plan: Plan) -> None:
    """Stored descriptors that another kernel left are held in this one, so that every kexec takes them along."""
    if session := carried_descriptors(plan):
        with contextlib.suppress(KupgradeError):  # it is tried again, and told, when they are given back
            host.descriptors.fetch(session)


def learn_ahead() -> None:
    """Look into what plans, records and steps are made of while nobody waits; in the blackout it is known then.

    What is there now stays: to look for garbage among it would cost a moment of the blackout, in every child, too.
    """
    learn_all()
    learn(Plan)
    learn(Record)
    gc.freeze()


def keep_pids_free(pids: Collection[int], root: Path) -> None:
    """Let new processes of this boot get PIDs above the workloads' from now on (proc_sys_kernel(5), ns_last_pid).

    A boot that came by kexec has done this in its initrd; one that fell back through the boot loader has not. Where
    the kernel has no ns_last_pid nothing is done: then CRIU refuses by itself, and the restore is tried once more.
    """
    last = root / "proc/sys/kernel/ns_last_pid"
    if not pids or not last.exists() or int(last.read_text()) >= max(pids):
        return
    with contextlib.suppress(OSError):  # a protection is missing; to give up the restore for it would be worse
        last.write_text(str(pid_floor(pids, proc.pid_max(root))))


def remount_root() -> None:
    """Make the root file system writable."""
    command.run(["mount", "-o", "remount,rw", "/"])


def await_predecessors(patience: float) -> None:
    """Wait (seconds) until nothing but us is left in our unit's cgroup: a criu whose worker was killed.

    Raises NeedsHumanError when one does not end: its work must not be done twice at once.
    """
    own = proc.process(os.getpid()).cgroup
    if not own.endswith(".service"):
        return
    deadline = time.monotonic() + patience
    while others := [pid for pid in cgroup.members(own) if pid != os.getpid()]:
        if time.monotonic() > deadline:
            raise NeedsHumanError("A child of an earlier worker does not end", f"processes {others}", "Look at them")
        time.sleep(0.05)


def forget_rollback_request() -> None:
    """The upgrade is over: a wish to roll it back must not meet the next one."""
    Places().rollback_request.unlink(missing_ok=True)


def _rollback_requested(places: Places) -> str:
    try:
        return places.rollback_request.read_text().strip() or "the operator asked for it"
    except FileNotFoundError:
        return ""

"""The loop run on this machine, and what is done around it: before its first record, and in a boot of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from kupgrade.core.allocate import pid_floor
from kupgrade.core.fold import fold
from kupgrade.core.stakes import HAND_OVER, jump_cut_short, step_index
from kupgrade.errors import KupgradeError, NeedsHumanError
from kupgrade.executor import Loop, advance
from kupgrade.host import command, criu_child
from kupgrade.journal import Journal
from kupgrade.kernel import cgroup, proc
from kupgrade.machine import blackout, faults
from kupgrade.machine.observed import SystemClock, observe_now
from kupgrade.machine.places import Places
from kupgrade.machine.planned import carried_descriptors, carried_images
from kupgrade.machine.real_host import RealHost, compose, fetch_descriptors
from kupgrade.model.codec import learn
from kupgrade.model.plan import Plan
from kupgrade.model.record import Record, State
from kupgrade.steps.base import learn_all


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
    """Wait (seconds) until nothing but us and ours is left in our unit's cgroup: a criu whose worker was killed.

    Raises NeedsHumanError when one does not end: its work must not be done twice at once.
    """
    own = proc.process(os.getpid()).cgroup
    if not own.endswith(".service"):
        return
    deadline = time.monotonic() + patience
    while others := set(cgroup.members(own)) - set(criu_child.family(os.getpid())):
        if time.monotonic() > deadline:
            raise NeedsHumanError(
                "A child of an earlier worker does not end", f"processes {sorted(others)}", "Look at them"
            )
        time.sleep(0.05)


def forget_rollback_request() -> None:
    """The upgrade is over: a wish to roll it back must not meet the next one."""
    Places().rollback_request.unlink(missing_ok=True)


def _rollback_requested(places: Places) -> str:
    try:
        return places.rollback_request.read_text().strip() or "the operator asked for it"
    except FileNotFoundError:
        return ""

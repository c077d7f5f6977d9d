"""An instance on this machine: started, kept and taken back by the one loop; looked at; its kernel log read.

Somebody has to keep /dev/kspawn open while it runs: the guard, which stops its CPUs before a reset of its own can reset
the machine, lives as long as the descriptor. The CPUs go on without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.core.fold import UNOBSERVED
from kupgrade.errors import KernelError, KupgradeError, NotNowError
from kupgrade.executor import Loop, advance
from kupgrade.journal import Journal
from kupgrade.kernel import kspawn, printk
from kupgrade.kernel.printk import Line
from kupgrade.machine import faults
from kupgrade.machine.beside import RealBeside
from kupgrade.machine.observed import SystemClock, observe_now
from kupgrade.machine.places import Places
from kupgrade.machine.spawn_watch import Watch
from kupgrade.model import standby
from kupgrade.model.codec import decode
from kupgrade.model.instance import RUN_TIMEOUT, Life, Ran, Seen
from kupgrade.model.record import Record, State
from kupgrade.model.spawn import Instance
from kupgrade.steps.beside import SpawnKernel
from kupgrade.steps.instance import StartKernel

__all__ = ["Line", "instance_of", "look", "read_log", "run", "run_command"]

POLL = 0.1  # seconds between two looks of the keeper
NOTED_EVERY = 1.0  # seconds between two notes of the heartbeat
LOOK = 0.5  # seconds in which a heartbeat must be seen; it comes fifty times a second
PANIC = "Kernel panic - not syncing"  # kernel/panic.c
LIVE_KINDS = (SpawnKernel.kind, StartKernel.kind)


@dataclass(frozen=True, slots=True)
class Pulse:
    """The keeper's note: the heartbeat as it last changed, and when (CLOCK_BOOTTIME, seconds)."""

    beats: int
    at: float


@dataclass
class InstanceHost:
    """All that its steps ask for."""

    beside: RealBeside


def folder_of(name: str, root: Path) -> Path:
    """Its volatile notes: the wish to stop it, the pulse."""
    return Places(root).run / "instances" / name


def request_of(name: str, root: Path) -> Path:
    """The wish to stop it, for the process that keeps it; its text is the reason."""
    return folder_of(name, root) / "stop"


def instance_of(state: State) -> tuple[Instance, bool] | None:
    """The kernel that was, or was about to be, started, and whether an agent is in it; None before that."""
    for spec, step in zip(state.plan.steps, state.steps, strict=True):
        if spec.kind in LIVE_KINDS and step.before is not None and UNOBSERVED not in step.before:
            return decode(Instance, dict(step.before), f"journal.{spec.kind}"), spec.kind == SpawnKernel.kind
    return None


def run(journal: Journal, name: str, *, root: Path, watch: Callable[[Record, State], None]) -> State:
    """Start it, or go on with what was begun; keep it until the wish to stop it; take it back.

    Returns when it is over or a human is needed. Raises KupgradeError when it cannot be watched any more: it goes on.
    """
    places = Places(root)
    folder_of(name, root).mkdir(mode=0o700, parents=True, exist_ok=True)
    request = request_of(name, root)
    beside = RealBeside(places)
    loop = Loop(
        log=journal,
        host=InstanceHost(beside),
        now=lambda state: observe_now(state, places),
        clock=SystemClock(),
        faults=lambda step, moment: faults.strike(places, step, moment),
        watch=watch,
        interrupted=lambda: _wish(request),
    )
    while True:
        state = advance(loop)
        found = instance_of(state)
        if state.over or state.hands_off or found is None:
            return state
        _keep(beside, found[0], name, root, lambda: bool(_wish(request)))


def _wish(request: Path) -> str:
    try:
        return request.read_text().strip() or "the operator asked for it"
    except FileNotFoundError:
        return ""


def _keep(beside: RealBeside, instance: Instance, name: str, root: Path, wished: Callable[[], bool]) -> None:
    """Hold the guard and note the heartbeat until somebody wants its end; a dead one waits for that, too.

    Nothing is left mapped: what is mapped cannot go back.
    """
    spawner = beside.spawner()
    spawner.guard(instance)
    note, pulse, noted = folder_of(name, root) / "pulse.json", Pulse(-1, 0.0), 0.0
    with spawner.watch(instance) as eye:
        while not wished():
            now, beats = time.clock_gettime(time.CLOCK_BOOTTIME), eye.beats()
            if beats != pulse.beats:
                pulse = Pulse(beats, now)
                if now - noted > NOTED_EVERY:
                    with contextlib.suppress(OSError):  # an aid; without us the guard would end
                        note.write_text(json.dumps({"beats": pulse.beats, "at": pulse.at}))
                    noted = now
            time.sleep(POLL)


def _noted(name: str, root: Path) -> Pulse | None:
    try:
        value = json.loads((folder_of(name, root) / "pulse.json").read_text())
        return Pulse(int(value["beats"]), float(value["at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def look(instance: Instance, name: str, agent: bool, release: str, root: Path = Path("/")) -> Seen:
    """What can be seen of it now, by the panic flag, its firmware registers, its CPUs and its heartbeat. No effect.

    Without an agent nobody sets a panic flag, and there is no heartbeat: its kernel log is all that there is.
    """
    try:
        with kspawn.open_device(root) as device, Watch.open(device, instance) as eye:
            if panic := eye.channel.panic:
                return Seen(Life.PANICKED, _age(name, root), f"its panic flag says {panic:#x}")
            if device.info().nr_started == 0:
                return Seen(Life.ENDED, None, "none of its CPUs is started; " + _ended(eye))
            if why := _ended(eye):
                return Seen(Life.ENDED, _age(name, root), why)
            return _heart(eye, name, root) if agent else _last_words(instance, release, root)
    except KernelError as error:
        return Seen(Life.UNKNOWN, None, str(error))
    except KupgradeError as error:
        return Seen(Life.UNKNOWN, None, f"its window is not readable: {error.what}")


def _last_words(instance: Instance, release: str, root: Path) -> Seen:
    told = "no agent is in it; its CPUs are started, it wanted no reset and no power off"
    try:
        lines = read_log(instance, release, root)
    except KupgradeError as error:
        return Seen(Life.UNKNOWN, None, f"{told}; its log: {error.why}")
    panic = next((line.text for line in lines if line.text.startswith(PANIC)), "")
    return Seen(Life.PANICKED, None, panic) if panic else Seen(Life.UNKNOWN, None, f"{told}, its log tells no panic")


def _ended(eye: Watch) -> str:
    reset, sleep = eye.registers()
    if reset or sleep:
        return "it wanted a reset" if reset else "it wanted power off"
    if set(eye.instance.apic_ids) <= set(eye.parked()):
        return "it halted: all its CPUs wait in the park loop"
    return ""


def _heart(eye: Watch, name: str, root: Path) -> Seen:
    before, began = eye.beats(), time.monotonic()
    while time.monotonic() - began < LOOK:
        if eye.beats() != before:
            return Seen(Life.ALIVE, round(time.monotonic() - began, 3))
        time.sleep(POLL / 10)
    return Seen(Life.SILENT, _age(name, root), f"no heartbeat in {LOOK:g} s")


def _age(name: str, root: Path) -> float | None:
    """Seconds since the heartbeat was last seen to change; None when nobody watched."""
    noted = _noted(name, root)
    if noted is None or noted.beats < 0:
        return None
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - noted.at, 1)


def run_command(instance: Instance, name: str, text: str, root: Path = Path("/")) -> Ran:
    """Have the agent in it run a command. Raises KupgradeError: it is dead, does not answer, or could not.

    One asker at a time: the channel has one end here.
    """
    folder = folder_of(name, root)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "talk").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotNowError("Another command runs in the instance", f"{lock.name} is locked", "Wait for it") from None
        with kspawn.open_device(root) as device, Watch.open(device, instance) as eye:
            answer = eye.client().ask(standby.RUN, RUN_TIMEOUT, command=text)
    return Ran(int(answer["status"]), str(answer["said"]))


def read_log(instance: Instance, release: str, root: Path = Path("/")) -> tuple[Line, ...]:
    """The kernel log, out of its memory; no agent is asked, and a panicked kernel tells its last words.

    Raises KupgradeError when there is none to be found: too early, or a kernel without VMCOREINFO.
    """
    with kspawn.open_device(root, writable=False) as device:
        mapping = device.map(instance.box.start, instance.box.size, writable=False)
        try:
            return printk.read(printk.Memory(mapping, instance.box.start), release)
        finally:
            mapping.close()

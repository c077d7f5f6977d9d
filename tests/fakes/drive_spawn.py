"""Builds the spawn engine's plan, drives both kernels through faults and restarts, and judges how it ended."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kupgrade.core.fold import fold
from kupgrade.core.planner import assemble, store_for, to_stop
from kupgrade.core.recovery import Action, decide
from kupgrade.engines.base import Order
from kupgrade.engines.spawn import SpawnEngine
from kupgrade.errors import NeedsHumanError
from kupgrade.executor import Loop, start
from kupgrade.machine import host
from kupgrade.model.plan import Plan
from kupgrade.model.policy import EngineOptions, SpawnOptions, WorkloadPolicy
from kupgrade.model.record import Outcome, Record, RecordKind, State
from kupgrade.model.workload import StoreKind
from kupgrade.standby import takeover as agent
from kupgrade.standby.verbs import Here
from tests.fakes import facts as fake_facts
from tests.fakes.drive import BY_HAND, ENABLED, UPGRADE, WORKLOADS, FakeClock, authority, shared_plan
from tests.fakes.machine import (
    NEW_ENTRY,
    OLD_ENTRY,
    EndError,
    Kill,
    MemoryLog,
    PowerCut,
    Restarted,
)
from tests.fakes.two_kernels import Box, Kernel, NewServes, OldLeft, OldPanicked, SpawnBehaviour, SpawnLog, Stuck
from tests.fakes.two_kernels_ports import BOX, planted

MAX_LIVES = 24


@functools.cache
def spawn_plan() -> Plan:
    """Two workloads, one of them probed, and two services to stop."""
    seen = tuple(fake_facts.seen(name=w.name, unit=w.unit, workload=w) for w in WORKLOADS)
    units = tuple(w.unit for w in WORKLOADS)
    facts = fake_facts.facts(
        workloads=seen, active_services=(ENABLED, BY_HAND, *units), needed_services=(), spawn=fake_facts.spawn()
    )
    policy = fake_facts.policy(
        workloads=tuple(WorkloadPolicy(w.name, unit=w.unit) for w in WORKLOADS),
        stop_services=True,
        engine=EngineOptions(spawn=SpawnOptions(predump_rounds=1)),
    )
    target = fake_facts.target()
    store = store_for(UPGRADE, policy, StoreKind.WINDOW)
    order = Order(UPGRADE, facts, policy, target, store, WORKLOADS, to_stop(facts, policy), 1000, "/var/lib/kupgrade/s")
    phases = SpawnEngine().phases(order)
    return assemble(UPGRADE, 1.8e9, facts, policy, target, "spawn", store, phases, ())


@functools.cache
def _planned() -> Record:
    log = MemoryLog()
    start(Loop(log, None, lambda _: pytest.fail("nobody asks"), FakeClock()), spawn_plan(), spawn_plan().boot_id)
    return log.records[0]


@contextlib.contextmanager
def two_kernels() -> Iterator[None]:
    """The real code on the modelled mechanism, for as long as this lasts."""
    with shared_plan(spawn_plan(), _planned()), pytest.MonkeyPatch.context() as patch:
        planted(patch)
        yield


def strike(box: Box, kernel: Kernel, kind: str) -> None:
    """What a fault does at the tick of `kernel`."""
    new, mine = box.new, kernel is box.current and box.in_child
    beside = new is not None and new.alive
    match kind:
        case "kill":
            raise Kill
        case "worker" if mine and box.old.alive:
            box.pending = Kill()
        case "agent" if new is not None:
            new.agent = False
        case "channel":
            box.corrupt = beside and not box.flag
        case "rollback" if not box.flag:
            box.old.rollback_request.write_text("asked by the operator")
        case "rollback in the new kernel" if new is not None:
            new.rollback_request.write_text("asked by the operator")
        case "late":
            box.clock += 1000.0
        case "panic" | "hang" if mine and new is not None:
            new.dead, new.hung = kind == "panic", kind == "hang"
        case "panic of the waiting kernel" if new is not None and not mine:
            new.dead = True
        case "cut" | "old panics":
            end = PowerCut() if kind == "cut" else OldPanicked()
            if not mine:
                raise end
            if kind == "cut" or box.old.alive:
                box.pending = end


@dataclass
class SpawnRun:
    """How one scenario went."""

    name: str
    faults: Mapping[int, str]
    box: Box
    state: State | None = None
    lives: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self.box.current.disk.records)

    @property
    def ticks(self) -> int:
        return len(self.box.trace)

    def report(self) -> str:
        """Scenario, what was violated, and the journal."""
        box = self.box
        faults = ", ".join(
            f"{kind} at {at} ({box.trace[at - 1] if at <= self.ticks else 'never reached'})"
            for at, kind in sorted(self.faults.items())
        )
        lines = [f"scenario {self.name}: {faults or 'no fault'}"]
        lines += [f"  violated: {problem}" for problem in self.problems]
        kinds = [spec.kind for spec in box.plan.steps]
        for r in self.records:
            detail = r.data.get("error") or r.data.get("reason") or r.data.get("outcome") or ""
            step = "" if r.step is None else kinds[r.step]
            lines.append(f"    {r.seq:3} {r.boot_id} epoch {r.epoch} {r.kind.value} {step} {detail}".rstrip())
        return "\n".join(lines)


def play_spawn(behaviour: SpawnBehaviour, faults: Mapping[int, str]) -> SpawnRun:
    """One upgrade on one machine with these faults, through everything that follows, judged."""
    box = Box(spawn_plan(), WORKLOADS, (ENABLED, BY_HAND), behaviour, faults, _planned(), strike)
    agent.Child.order, agent.Child.pid, agent.Child.started, agent.Child.inside = None, 0, 0, False
    run = SpawnRun(behaviour.name, faults, box)
    BOX.append(box)
    try:
        while run.state is None and run.lives < MAX_LIVES and not box.limits:
            one_life(run)
        judge(run)
    finally:
        if box.child is not None:
            box.child.kill()
        BOX.pop()
    return run


def one_life(run: SpawnRun) -> None:
    """One process of the tool in the old kernel, or in the one that the machine restarted into."""
    box = run.box
    run.lives += 1
    box.current, box.in_child = box.old, False
    try:
        try:
            run.state = host.run(SpawnLog(box.old), root=Path("/"), watch=lambda *_: None)  # type: ignore[arg-type]
        except Kill:
            box.steps(box.behaviour.gap)
    except EndError as end:
        _end(run, end)
    except NeedsHumanError as error:
        run.problems.append(f"the tool gave up: {error}")
        run.lives = MAX_LIVES


def _end(run: SpawnRun, end: EndError) -> None:
    """What becomes of the machine when a kernel, or the power, ends."""
    box = run.box
    match end:
        case Kill():
            return
        case OldPanicked() if box.old.panic == 0 and box.told:
            box.old.alive = False
            _alone(run)
        case OldLeft():
            _alone(run)
        case NewServes():
            _serves(run)
        case PowerCut() | OldPanicked() | Restarted():
            box.reset(injected=True)
        case Stuck():
            _stuck(run)
        case _:
            raise end


def _stuck(run: SpawnRun) -> None:
    new = run.box.new
    gone = not run.box.old.alive and not run.box.flag
    if new is not None and (new.hung or new.dead or gone or not new.agent):
        run.box.reset(injected=True)  # by the operator, or by its watchdog, as any host that hangs
    else:
        run.problems.append("nobody does anything any more")
        run.lives = MAX_LIVES


def _serves(run: SpawnRun) -> None:
    box = run.box
    assert box.new is not None
    box.current = box.new
    run.state = fold(box.new.disk.records)


def _alone(run: SpawnRun) -> None:
    """The new kernel with nobody beside it."""
    box = run.box
    box.idle = 0
    try:
        while True:
            new, child = box.new, box.child
            if new is None or child is None or new.hung or new.dead:
                box.reset(injected=True)
                return
            box.current = new
            if child.over:
                if not child.killed:
                    _serves(run)
                    return
                if new.system:
                    agent._start(Here(None, new.root), agent.Child.order)  # type: ignore[arg-type]
                elif new.agent and hasattr(agent, "tend"):
                    agent.tend(Here(None, new.root))  # type: ignore[arg-type]
            box.step_child()
    except EndError as end:
        box.current = box.old
        _end(run, end)


def judge(run: SpawnRun) -> None:
    """Everything that must hold at the end."""
    box, state = run.box, run.state
    if box.limits:
        run.problems += box.violations
        return
    if state is None:
        run.problems.append(f"it does not end: {run.lives} lives")
    else:
        if decide(state, box.current.now(state)).action not in (Action.NOTHING, Action.ASK_HUMAN):
            run.problems.append("asked once more after the end, something would be done")
        box.faults = {}
        box.work()
        if state.hands_off:
            if not box.behaviour.hands_off:
                run.problems.append(f"a person was asked without need: {state.hands_off}")
        elif state.outcome is None:
            run.problems.append("advance came back without an end")
        else:
            _judge_end(run, state.outcome)
    run.problems += authority(run.records)
    run.problems += [r.data["error"] for r in run.records if "failed unexpectedly" in str(r.data.get("error"))]
    run.problems += box.violations
    if box.beside is not None:
        run.problems += box.beside.violations


def _judge_end(run: SpawnRun, outcome: Outcome) -> None:
    box, kernel = run.box, run.box.current
    wrong = run.problems.append
    for workload in box.workloads:
        copy = kernel.copies.get(workload.name)
        if copy is None or not copy.running or not copy.adopted:
            wrong(f"{workload.name} does not serve at the end: {copy}")
        elif copy.lineage and not box.excused:
            wrong(f"{workload.name} lost its memory")
        if box.cold_starts.get(workload.name, 0) > max(0, box.boots - 1):
            wrong(f"{workload.name} was started cold {box.cold_starts[workload.name]} times in {box.boots} boots")
    left = {
        "network lock": kernel.lock, "network lock of the next boots": kernel.lock_file, "drop-ins": kernel.holds,
        "images": kernel.images, "image directory": kernel.store_made, "complete mark": kernel.sealed_in,
        "standby initramfs": kernel.disk.built, "frozen file systems": kernel.filesystems_frozen,
        "a snapshot": kernel.overlay,
    }  # fmt: skip
    for what, value in left.items():
        if value:
            wrong(f"left behind: {what} ({value})")
    if box.unsaid and not any(r.kind in (RecordKind.COLD, RecordKind.FELL_BACK) for r in run.records):
        wrong("the machine was restarted and the journal does not say so")
    if any(box.drivers[name] is not kernel for name in box.drivers):
        wrong(f"devices are not driven by the kernel that serves: {box.drivers}")
    if outcome is Outcome.COMMITTED:
        _judge_commit(run)
    else:
        _judge_rollback(run)


def _judge_commit(run: SpawnRun) -> None:
    box, kernel = run.box, run.box.current
    if not kernel.committed:
        run.problems.append("ended as committed without a commit")
    cold = any(r.kind is RecordKind.COLD for r in run.records)
    if kernel.release != box.plan.new_release and not cold:
        run.problems.append(f"committed, but {kernel.release} runs")
    expected = NEW_ENTRY if kernel.release == box.plan.new_release else OLD_ENTRY
    if kernel.default() != expected:
        run.problems.append(f"committed on {kernel.release}, but the boot default is {kernel.default()}")
    told = [r for r in run.records if r.data.get("retired") is not None]
    if not cold and kernel is box.new and box.old.alive and not any(r.data["retired"] == 0 for r in told):
        run.problems.append("the old kernel is still there and the journal does not say so")


def _judge_rollback(run: SpawnRun) -> None:
    box, kernel = run.box, run.box.current
    wrong = run.problems.append
    if kernel.committed or box.flag:
        wrong("rolled back after the commit")
    if kernel.release != box.plan.old_release and not box.excused:
        wrong(f"rolled back, but {kernel.release} runs")
    if kernel.stored_default != box.behaviour.stored_default:
        wrong(f"the boot default is {kernel.stored_default}, it was {box.behaviour.stored_default}")
    if kernel.active != ({ENABLED, BY_HAND} if box.boots == 1 else {ENABLED}):
        wrong(f"services run: {sorted(kernel.active)}")
    if box.new is not None and box.new.alive:
        wrong("the new kernel still runs")
    if kernel.panic != box.behaviour.admin_panic:
        wrong(f"kernel.panic is {kernel.panic}")
    beside = box.beside
    if beside is not None:
        before = type(beside)()
        for name in ("loaded", "online", "blocks", "running", "secrets"):
            if getattr(beside, name) != getattr(before, name):
                wrong(f"left behind: {name} ({getattr(beside, name)})")



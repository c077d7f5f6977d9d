"""Builds the spawn engine's plan, drives both kernels through faults and restarts, and judges how it ended."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kupgrade.core.fold import fold
from kupgrade.core.planner import assemble, store_for, to_stop
from kupgrade.engines.base import Order
from kupgrade.engines.spawn import SpawnEngine
from kupgrade.errors import NeedsHumanError
from kupgrade.executor import Loop, start
from kupgrade.machine import host
from kupgrade.model.plan import Plan
from kupgrade.model.policy import EngineOptions, MemoryMode, SpawnOptions, WorkloadPolicy
from kupgrade.model.record import Record
from kupgrade.model.workload import StoreKind
from kupgrade.standby import takeover as agent
from kupgrade.standby.verbs import Here
from tests.fakes import facts as fake_facts
from tests.fakes import stopping
from tests.fakes.drive import UPGRADE, WORKLOADS, FakeClock, shared_plans
from tests.fakes.endings import REBOOT_ASKED, EndError, Kill, PowerCut, Restarted
from tests.fakes.hooks import HOOKS
from tests.fakes.judge_spawn import SpawnRun, judge
from tests.fakes.logs import MemoryLog
from tests.fakes.two_kernels import BOX, Box
from tests.fakes.two_kernels_kernel import Kernel, SpawnLog
from tests.fakes.two_kernels_parts import NewServes, OldLeft, OldPanicked, SpawnBehaviour, Stuck
from tests.fakes.two_kernels_ports import planted

MAX_LIVES = 24


MODE = [MemoryMode.COPY]


def spawn_plan() -> Plan:
    """As `two_kernels` was asked."""
    return _made_plan(MODE[-1])


@functools.cache
def _made_plan(memory: MemoryMode) -> Plan:
    """Two workloads, one of them probed, and two services to stop."""
    seen = tuple(fake_facts.seen(name=w.name, unit=w.unit, workload=w) for w in WORKLOADS)
    units = tuple(w.unit for w in WORKLOADS)
    facts = fake_facts.facts(
        workloads=(*seen, *stopping.FACTS),
        active_services=(*stopping.SERVICES, *units),
        needed_services=(),
        spawn=fake_facts.spawn(),
        hooks=HOOKS,
        reboot_packages=REBOOT_ASKED,
    )
    policy = fake_facts.policy(
        workloads=(*(WorkloadPolicy(w.name, unit=w.unit) for w in WORKLOADS), *stopping.POLICIES),
        stop_services=True,
        engine=EngineOptions(memory=memory, spawn=SpawnOptions(predump_rounds=1)),
    )
    target = fake_facts.target()
    store = store_for(UPGRADE, policy, StoreKind.WINDOW)
    order = Order(UPGRADE, facts, policy, target, store, WORKLOADS, to_stop(facts, policy), 1000, "/var/lib/kupgrade/s")
    phases = SpawnEngine().phases(order)
    return assemble(UPGRADE, 1.8e9, facts, policy, target, "spawn", store, phases, ())


def _planned() -> Record:
    return _recorded(MODE[-1])


@functools.cache
def _recorded(memory: MemoryMode) -> Record:
    log, made = MemoryLog(), _made_plan(memory)
    start(Loop(log, None, lambda _: pytest.fail("nobody asks"), FakeClock()), made, made.boot_id)
    return log.records[0]


@contextlib.contextmanager
def two_kernels(memory: MemoryMode = MemoryMode.COPY) -> Iterator[None]:
    """The real code on the modelled mechanism, for as long as this lasts."""
    MODE.append(memory)
    try:
        with shared_plans((spawn_plan(), _planned())), pytest.MonkeyPatch.context() as patch:
            planted(patch)
            yield
    finally:
        MODE.pop()


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


def play_spawn(behaviour: SpawnBehaviour, faults: Mapping[int, str]) -> SpawnRun:
    """One upgrade on one machine with these faults, through everything that follows, judged."""
    box = Box(spawn_plan(), WORKLOADS, stopping.SERVICES, behaviour, faults, _planned(), strike)
    _no_child()
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
        _no_child()
    return run


def _no_child() -> None:
    agent.Child.order, agent.Child.pid, agent.Child.started, agent.Child.inside = None, 0, 0, False


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
    if new is not None and new.hung and run.box.old.alive:
        run.problems.append("nobody ends a new kernel that hangs")
        run.lives = MAX_LIVES
    elif new is not None and (new.hung or new.dead or gone or not new.agent):
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
                elif new.agent:
                    agent.tend(Here(None, new.root))  # type: ignore[arg-type]
            box.step_child()
    except EndError as end:
        box.current = box.old
        _end(run, end)

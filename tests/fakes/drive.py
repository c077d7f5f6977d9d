"""Builds the kexec engine's plan, drives the loop through faults and boots, and judges how it ended."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import pytest

from kupgrade import executor
from kupgrade.core import fold
from kupgrade.core.planner import assemble, store_for, to_stop
from kupgrade.core.stakes import jump_cut_short
from kupgrade.engines.base import Order
from kupgrade.engines.kexec import KexecEngine
from kupgrade.executor import Loop, advance, start
from kupgrade.model.hook import Hook
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import Plan
from kupgrade.model.policy import EngineOptions, MemoryMode, WorkloadPolicy
from kupgrade.model.record import Now, Record, State
from kupgrade.model.workload import Probe, ProbeKind, StoreKind, Workload
from kupgrade.steps import base
from tests.fakes import facts as fake_facts
from tests.fakes import stopping, stored
from tests.fakes.endings import (
    REBOOT_ASKED,
    Behaviour,
    Crossed,
    Hung,
    Kill,
    PowerCut,
    Restarted,
)
from tests.fakes.hooks import HOOKS
from tests.fakes.judge import Run, judge
from tests.fakes.logs import MemoryLog
from tests.fakes.machine import Machine

MAX_ADVANCES = 24
UPGRADE = UpgradeId("20261121-041503-9f2c1a")
WEB = Workload(
    "web", "web.service", "/system.slice/web.service", 500, (500, 501), tcp_ports=(80,),
    probe=Probe(ProbeKind.TCP, port=80), watchdog=30.0,
)  # fmt: skip
JOBS = Workload("jobs", "jobs.service", "/system.slice/jobs.service", 700, (700,), udp_ports=(5000,))
WORKLOADS = (WEB, JOBS)


def plan(kind: StoreKind = StoreKind.DISK, hooks: tuple[Hook, ...] = HOOKS, *, in_place: bool = False) -> Plan:
    """One for all who ask for the same, however they ask: what is shared is known by being the same object."""
    return _plan(kind, hooks, in_place)


@functools.cache
def _plan(kind: StoreKind, hooks: tuple[Hook, ...], in_place: bool) -> Plan:
    """The plan of the kexec engine for two workloads, one of them probed; two services end, two more are stopped."""
    seen = tuple(fake_facts.seen(name=w.name, unit=w.unit, workload=w) for w in WORKLOADS)
    facts = fake_facts.facts(
        workloads=(*seen, *stopping.FACTS),
        active_services=(*stopping.SERVICES, WEB.unit, JOBS.unit),
        needed_services=(),
        hooks=hooks,
        reboot_packages=REBOOT_ASKED,
        descriptor_stores=(stored.STORE,),
    )
    policy = fake_facts.policy(
        workloads=(*(WorkloadPolicy(w.name, unit=w.unit) for w in WORKLOADS), *stopping.POLICIES),
        stop_services=True,
        soak=600.0 if kind is StoreKind.LUO else 0.0,  # the plan of one store has a soak time, that of the other none
        preserve=(stored.POLICY,) if kind is StoreKind.LUO else (),  # what needs the same kernels
        engine=EngineOptions(memory=MemoryMode.IN_PLACE if in_place else MemoryMode.COPY),
    )
    target = fake_facts.target()
    store = store_for(UPGRADE, policy, kind)
    order = Order(UPGRADE, facts, policy, target, store, WORKLOADS, to_stop(facts, policy), 1000, "/var/lib/kupgrade/s")
    phases = KexecEngine().phases(order)
    return assemble(UPGRADE, 1.8e9, facts, policy, target, "kexec", store, phases, ())


def planned(kind: StoreKind = StoreKind.DISK, *, in_place: bool = False) -> Record:
    """The first record of its journal; one, as with `plan`."""
    return _planned(kind, in_place)


@functools.cache
def _planned(kind: StoreKind, in_place: bool) -> Record:
    log = MemoryLog()
    made = plan(kind, in_place=in_place)
    start(Loop(log, None, _no_machine, FakeClock()), made, made.boot_id)
    return log.records[0]


def _no_machine(_state: State) -> Now:
    raise AssertionError("nobody asks")


@contextmanager
def shared_plans(*shared: tuple[Plan, Record]) -> Iterator[None]:
    """Decode these plans, each with its first record, and their steps once instead of in each of thousands of runs.

    Other plans are as ever.
    """
    by_data = {id(first.data["plan"]): made for made, first in shared}
    loaded = {id(spec): base.load(spec) for made, _ in shared for spec in made.steps}
    all_steps = {id(made): made.steps for made, _ in shared}
    all_sides = {id(made): made.sides for made, _ in shared}
    decode, load = fold.decode, executor.load
    every_step, every_side = (cast(property, vars(Plan)[name]).fget for name in ("steps", "sides"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "decode", lambda cls, data, where: by_data.get(id(data)) or decode(cls, data, where))
        patch.setattr(Plan, "steps", property(lambda one: all_steps.get(id(one)) or every_step(one)))
        patch.setattr(Plan, "sides", property(lambda one: all_sides.get(id(one)) or every_side(one)))
        patch.setattr(executor, "load", lambda spec: loaded.get(id(spec)) or load(spec))
        yield


class FakeClock:
    """Time stands still: nothing here depends on it."""

    def time(self) -> float:
        return 1.8e9

    def uptime(self) -> float:
        return 100.0


def play(
    behaviour: Behaviour,
    faults: Mapping[int, str],
    *,
    name: str = "",
    make_log: Callable[[Machine], MemoryLog] = MemoryLog,
) -> Run:
    """One upgrade on one host with these faults, through all its boots, judged."""
    run = begin(behaviour, faults, name=name, make_log=make_log)
    while run.state is None and run.advances < MAX_ADVANCES:
        one_life(run)
    judge(run)
    return run


def begin(
    behaviour: Behaviour,
    faults: Mapping[int, str],
    *,
    name: str = "",
    make_log: Callable[[Machine], MemoryLog] = MemoryLog,
) -> Run:
    """A host on which the upgrade has been recorded and nothing else has happened."""
    kind = StoreKind(behaviour.store)
    in_place = behaviour.in_place
    machine = Machine(plan(kind, in_place=in_place), WORKLOADS, stopping.SERVICES, behaviour, faults)
    log = make_log(machine)
    log.begin(planned(kind, in_place=in_place))
    machine.log = log
    return Run(name or behaviour.name, faults, machine, log)


def _loop(run: Run) -> Loop:
    machine = run.machine
    return Loop(
        log=run.log,
        host=machine.host,
        now=machine.now,
        clock=FakeClock(),
        faults=lambda step, moment: machine.tick(f"{step} {moment}"),
        interrupted=lambda: machine.rollback_request,
    )


def one_life(run: Run) -> None:
    """One process of the tool, until the end of the upgrade, of the process or of its kernel."""
    machine = run.machine
    if run.advances:
        run.log.reopen()
    machine.host.hooks.answered.clear()  # what a process knows ends with it
    run.advances += 1
    try:
        state = before_the_first_record(machine, run.log) if run.advances > 1 else None
        run.state = advance(_loop(run), state)
    except Kill:
        machine.handed.killed()
        return  # the kernel and everything in it goes on; systemd starts the tool again
    except PowerCut:
        run.log.lose_unsynced()
        machine.reset(injected=True)
    except Crossed:
        machine.kexec()
    except Restarted:
        machine.reset()
    except Hung:
        run.log.lose_unsynced()
        machine.hang()


def before_the_first_record(machine: Machine, log: MemoryLog) -> State:
    """What kupgrade.machine.host.run does when a worker starts; the state that it goes on from."""
    state = fold.fold(log.records)
    if machine.boot_id != machine.plan.boot_id and not state.committed:
        machine.handed.fetch()
        machine.stored.fetch()
    if jump_cut_short(state):
        machine.host.crossing.thaw_filesystems()
    return state

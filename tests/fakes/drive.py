"""Builds the kexec engine's plan, drives the loop through faults and boots, and judges how it ended."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from kupgrade import executor
from kupgrade.core import fold
from kupgrade.core.planner import assemble, store_for, to_stop
from kupgrade.core.recovery import Action, decide
from kupgrade.core.stakes import jump_cut_short
from kupgrade.engines.base import Order
from kupgrade.engines.kexec import KexecEngine
from kupgrade.executor import Loop, advance, start
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import Plan
from kupgrade.model.policy import EngineOptions, MemoryMode, WorkloadPolicy
from kupgrade.model.record import Now, Outcome, Record, RecordKind, State
from kupgrade.model.workload import Probe, ProbeKind, StoreKind, Workload
from kupgrade.steps import base
from tests.fakes import facts as fake_facts
from tests.fakes.endings import ADMIN_PANIC, NEW_ENTRY, OLD_ENTRY, Behaviour, Crossed, Hung, Kill, PowerCut, Restarted
from tests.fakes.logs import MemoryLog
from tests.fakes.machine import Machine

MAX_ADVANCES = 24
UPGRADE = UpgradeId("20261121-041503-9f2c1a")
WEB = Workload(
    "web", "web.service", "/system.slice/web.service", 500, (500, 501), tcp_ports=(80,),
    probe=Probe(ProbeKind.TCP, port=80),
)  # fmt: skip
JOBS = Workload("jobs", "jobs.service", "/system.slice/jobs.service", 700, (700,), udp_ports=(5000,))
WORKLOADS = (WEB, JOBS)
ENABLED, BY_HAND = "cron.service", "report.service"  # the second was started by hand, no boot starts it


@functools.cache
def plan(kind: StoreKind = StoreKind.DISK, *, in_place: bool = False) -> Plan:
    """The plan of the kexec engine for two workloads, one of them probed, and two services to stop."""
    seen = tuple(fake_facts.seen(name=w.name, unit=w.unit, workload=w) for w in WORKLOADS)
    facts = fake_facts.facts(
        workloads=seen, active_services=(ENABLED, BY_HAND, WEB.unit, JOBS.unit), needed_services=()
    )
    policy = fake_facts.policy(
        workloads=tuple(WorkloadPolicy(w.name, unit=w.unit) for w in WORKLOADS),
        stop_services=True,
        engine=EngineOptions(memory=MemoryMode.IN_PLACE if in_place else MemoryMode.COPY),
    )
    target = fake_facts.target()
    store = store_for(UPGRADE, policy, kind)
    order = Order(UPGRADE, facts, policy, target, store, WORKLOADS, to_stop(facts, policy), 1000, "/var/lib/kupgrade/s")
    phases = KexecEngine().phases(order)
    return assemble(UPGRADE, 1.8e9, facts, policy, target, "kexec", store, phases, ())


@functools.cache
def planned(kind: StoreKind = StoreKind.DISK, *, in_place: bool = False) -> Record:
    log = MemoryLog()
    made = plan(kind, in_place=in_place)
    start(Loop(log, None, _no_machine, FakeClock()), made, made.boot_id)
    return log.records[0]


def _no_machine(_state: State) -> Now:
    raise AssertionError("nobody asks")


@contextmanager
def shared_plan(of: Plan | None = None, first: Record | None = None) -> Iterator[None]:
    """Decode one plan and its steps once instead of in each of thousands of runs; other plans are as ever."""
    mine = of or plan()
    stored = (first or planned()).data["plan"]
    steps = {id(spec): base.load(spec) for spec in mine.steps}
    decode, load, every_step, every_side = fold.decode, executor.load, Plan.steps, Plan.sides
    all_steps, all_sides = mine.steps, mine.sides
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "decode", lambda cls, data, where: mine if data is stored else decode(cls, data, where))
        patch.setattr(Plan, "steps", property(lambda one: all_steps if one is mine else every_step.fget(one)))
        patch.setattr(Plan, "sides", property(lambda one: all_sides if one is mine else every_side.fget(one)))
        patch.setattr(executor, "load", lambda spec: steps[id(spec)] if id(spec) in steps else load(spec))
        yield


class FakeClock:
    """Time stands still: nothing here depends on it."""

    def time(self) -> float:
        return 1.8e9

    def uptime(self) -> float:
        return 100.0


@dataclass
class Run:
    """How one scenario went."""

    name: str
    faults: Mapping[int, str]
    machine: Machine
    log: MemoryLog
    state: State | None = None
    advances: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ticks(self) -> int:
        return len(self.machine.trace)

    def report(self) -> str:
        """Scenario, what was violated, and the journal."""
        faults = ", ".join(
            f"{kind} at {at} ({self.machine.trace[at - 1] if at <= self.ticks else 'never reached'})"
            for at, kind in sorted(self.faults.items())
        )
        lines = [f"scenario {self.name}: {faults or 'no fault'}"]
        lines += [f"  violated: {problem}" for problem in self.problems]
        return "\n".join(
            [*lines, "  journal:", *(f"    {line}" for line in journal_lines(self.log.records, self.machine.plan))]
        )


def journal_lines(records: Sequence[Record], of: Plan | None = None) -> list[str]:
    """One line a record."""
    kinds = [spec.kind for spec in (of or plan()).steps]
    lines = []
    for r in records:
        step = "" if r.step is None else kinds[r.step]
        detail = r.data.get("error") or r.data.get("reason") or r.data.get("outcome") or ""
        lines.append(f"{r.seq:3} {r.boot_id} epoch {r.epoch} {r.kind.value} {step} {detail}".rstrip())
    return lines


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
    machine = Machine(plan(kind, in_place=in_place), WORKLOADS, (ENABLED, BY_HAND), behaviour, faults)
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
    run.advances += 1
    try:
        if run.advances > 1:
            before_the_first_record(machine, run.log)
        run.state = advance(_loop(run))
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


def before_the_first_record(machine: Machine, log: MemoryLog) -> None:
    """What kupgrade.machine.host.run does when a worker starts."""
    state = fold.fold(log.records)
    if machine.boot_id != machine.plan.boot_id and not state.committed:
        machine.handed.fetch()
    if jump_cut_short(state):
        machine.host.crossing.thaw_filesystems()


def judge(run: Run) -> None:
    """Everything that must hold at the end."""
    machine, state = run.machine, run.state
    if state is None:
        run.problems.append(f"it does not end: {run.advances} calls of advance")
    else:
        # tests/unit/core/test_fold.py: this state is what a new process folds from the journal.
        if decide(state, machine.now(state)).action not in (Action.NOTHING, Action.ASK_HUMAN):
            run.problems.append("asked once more after the end, something would be done")
        machine.faults = {}
        machine.work()
        if state.hands_off:
            _judge_hands_off(run, state)
        elif state.outcome is None:
            run.problems.append("advance came back without an end")
        else:
            _judge_end(run, state.outcome)
    run.problems += authority(run.log.records)
    run.problems += machine.violations


def _judge_hands_off(run: Run, state: State) -> None:
    machine = run.machine
    if not machine.behaviour.hands_off:
        run.problems.append(f"a person was asked without need: {state.hands_off}")
    if machine.restored_or_running():
        return
    if not machine.excused and machine.sealed_in is None:
        run.problems.append("hands off, but the evidence is gone: no copy and no complete images")


def _judge_end(run: Run, outcome: Outcome) -> None:
    machine = run.machine
    wrong = run.problems.append
    for workload in machine.workloads:
        copy = machine.copies.get(workload.name)
        if copy is None or not copy.running or not copy.adopted:
            wrong(f"{workload.name} does not serve at the end: {copy}")
        elif copy.lineage and not machine.excused:
            wrong(f"{workload.name} lost its memory")
    left = {
        "network lock": machine.lock, "network lock of the next boots": machine.lock_file, "drop-ins": machine.holds,
        "kexec image": machine.loaded, "images": machine.images, "image directory": machine.store_made,
        "complete mark": machine.sealed_in, "staged initrds": machine.initrds, "watchdog": machine.watchdog,
        "dead-man timer": machine.deadman, "frozen file systems": machine.filesystems_frozen,
    }  # fmt: skip
    for what, value in left.items():
        if value:
            wrong(f"left behind: {what} ({value})")
    if machine.panic != ADMIN_PANIC:
        wrong(f"kernel.panic is {machine.panic}, it was {ADMIN_PANIC}")
    cold = any(r.kind is RecordKind.COLD for r in run.log.records)
    if outcome is Outcome.COMMITTED:
        _judge_commit(run, cold)
    else:
        _judge_rollback(run)


def _judge_commit(run: Run, cold: bool) -> None:
    machine = run.machine
    if not machine.committed:
        run.problems.append("ended as committed without a commit")
    if machine.release != machine.plan.new_release and not (cold and machine.excused):
        run.problems.append(f"committed, but {machine.release} runs")
    expected = NEW_ENTRY if machine.release == machine.plan.new_release else OLD_ENTRY
    if machine.default() != expected:
        run.problems.append(f"committed on {machine.release}, but the boot default is {machine.default()}")


def _judge_rollback(run: Run) -> None:
    machine = run.machine
    if machine.committed:
        run.problems.append("rolled back after the commit")
    if machine.release != machine.plan.old_release and not machine.excused:
        run.problems.append(f"rolled back, but {machine.release} runs")
    if machine.stored_default != machine.behaviour.stored_default:
        run.problems.append(f"the boot default is {machine.stored_default}, it was {machine.behaviour.stored_default}")
    wanted = {ENABLED, BY_HAND} if machine.boots == 1 else {ENABLED}
    if machine.active != wanted:
        run.problems.append(f"services run: {sorted(machine.active)}, expected {sorted(wanted)}")


CLAIMS = (RecordKind.CROSSED, RecordKind.FELL_BACK, RecordKind.COLD)


def authority(records: Sequence[Record]) -> list[str]:
    """One writer: every record is of the boot and epoch that hold authority; a claim raises the epoch by one."""
    problems = []
    boot, epoch = records[0].boot_id, records[0].epoch
    for record in records[1:]:
        if record.kind in CLAIMS:
            if record.epoch != epoch + 1:
                problems.append(f"record {record.seq}: a claim in epoch {record.epoch} after {epoch}")
            boot, epoch = record.boot_id, record.epoch
        elif record.kind is not RecordKind.HANDS_OFF and (record.boot_id, record.epoch) != (boot, epoch):
            problems.append(f"record {record.seq}: {record.boot_id} epoch {record.epoch} has no authority")
        if record.seq != records.index(record) + 1:
            problems.append(f"record {record.seq} is out of sequence")
    return problems

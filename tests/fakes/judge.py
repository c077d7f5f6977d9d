"""One scenario with one kernel after the other, and everything that must hold at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kupgrade.core.recovery import Action, decide
from kupgrade.model.plan import Plan
from kupgrade.model.record import Outcome, Record, RecordKind, State
from tests.fakes.endings import ADMIN_PANIC, NEW_ENTRY, OLD_ENTRY, REBOOT_ASKED
from tests.fakes.hooks import judge_hooks
from tests.fakes.logs import MemoryLog
from tests.fakes.machine import Machine
from tests.fakes.stopping import BY_HAND, ENABLED, STOPPED, judge_stopped


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


def journal_lines(records: Sequence[Record], of: Plan) -> list[str]:
    """One line a record."""
    kinds = [spec.kind for spec in of.steps]
    lines = []
    for r in records:
        step = "" if r.step is None else kinds[r.step]
        detail = r.data.get("error") or r.data.get("reason") or r.data.get("outcome") or ""
        lines.append(f"{r.seq:3} {r.boot_id} epoch {r.epoch} {r.kind.value} {step} {detail}".rstrip())
    return lines


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
        if machine.watched.get(workload.name, 0.0) != workload.watchdog:
            wrong(f"nobody watches {workload.name} any more")
    left = {
        "network lock": machine.lock, "network lock of the next boots": machine.lock_file, "drop-ins": machine.holds,
        "kexec image": machine.loaded, "images": machine.images, "image directory": machine.store_made,
        "complete mark": machine.sealed_in, "staged initrds": machine.initrds, "watchdog": machine.watchdog,
        "dead-man timer": machine.deadman, "frozen file systems": machine.filesystems_frozen,
    }  # fmt: skip
    for what, value in left.items():
        if value:
            wrong(f"left behind: {what} ({value})")
    run.problems += machine.stored.problems(run.log.records)
    run.problems += judge_stopped(machine)
    if machine.panic != ADMIN_PANIC:
        wrong(f"kernel.panic is {machine.panic}, it was {ADMIN_PANIC}")
    run.problems += judge_hooks(
        machine.host.hooks.outside, outcome, machine.behaviour, default=machine.default() == NEW_ENTRY
    )
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
    same_boot = run.log.records[-1].boot_id == machine.boot_id  # /run ends with its boot
    if not cold and same_boot and machine.reboot_packages != REBOOT_ASKED[1:]:
        run.problems.append(f"committed, but a restart is asked for by {machine.reboot_packages}")


def _judge_rollback(run: Run) -> None:
    machine = run.machine
    if machine.committed:
        run.problems.append("rolled back after the commit")
    if machine.release != machine.plan.old_release and not machine.excused:
        run.problems.append(f"rolled back, but {machine.release} runs")
    if machine.stored_default != machine.behaviour.stored_default:
        run.problems.append(f"the boot default is {machine.stored_default}, it was {machine.behaviour.stored_default}")
    if machine.boots == 1 and machine.reboot_packages != REBOOT_ASKED:
        run.problems.append(f"rolled back, but a restart is asked for by {machine.reboot_packages}")
    wanted = {ENABLED, BY_HAND} if machine.boots == 1 else {ENABLED}
    if machine.active - STOPPED != wanted:
        run.problems.append(f"services run: {sorted(machine.active)}, expected {sorted(wanted)}")


CLAIMS = (RecordKind.CROSSED, RecordKind.FELL_BACK, RecordKind.COLD)


def authority(records: Sequence[Record]) -> list[str]:
    """One writer: every record is of the boot and epoch that hold authority; a claim raises the epoch by one."""
    problems = []
    boot, epoch = records[0].boot_id, records[0].epoch
    for place, record in enumerate(records[1:], 2):
        if record.kind in CLAIMS:
            if record.epoch != epoch + 1:
                problems.append(f"record {record.seq}: a claim in epoch {record.epoch} after {epoch}")
            boot, epoch = record.boot_id, record.epoch
        elif record.kind is not RecordKind.HANDS_OFF and (record.boot_id, record.epoch) != (boot, epoch):
            problems.append(f"record {record.seq}: {record.boot_id} epoch {record.epoch} has no authority")
        if record.seq != place:
            problems.append(f"record {record.seq} is out of sequence")
    return problems

"""One scenario with two kernels, and everything that must hold at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kupgrade.core.recovery import Action, decide
from kupgrade.model.record import Outcome, Record, RecordKind, State
from tests.fakes.endings import NEW_ENTRY, OLD_ENTRY, REBOOT_ASKED
from tests.fakes.hooks import judge_hooks
from tests.fakes.judge import authority
from tests.fakes.stopping import BY_HAND, ENABLED, STOPPED, judge_stopped
from tests.fakes.two_kernels import Box

PROMPT = 20.0  # seconds


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


def _judge_end(run: SpawnRun, outcome: Outcome) -> None:
    box, kernel = run.box, run.box.current
    wrong = run.problems.append
    for workload in box.workloads:
        copy = kernel.copies.get(workload.name)
        if copy is None or not copy.running or not copy.adopted:
            wrong(f"{workload.name} does not serve at the end: {copy}")
        elif copy.lineage and not box.excused:
            wrong(f"{workload.name} lost its memory")
        if kernel.watched.get(workload.name, 0.0) != workload.watchdog:
            wrong(f"nobody watches {workload.name} any more")
        if box.cold_starts.get(workload.name, 0) > max(0, box.boots - 1):
            wrong(f"{workload.name} was started cold {box.cold_starts[workload.name]} times in {box.boots} boots")
    left = {
        "network lock": kernel.lock, "network lock of the next boots": kernel.lock_file, "drop-ins": kernel.holds,
        "images": kernel.images, "image directory": kernel.store_made, "complete mark": kernel.sealed_in,
        "standby initramfs": kernel.disk.built, "frozen file systems": kernel.filesystems_frozen,
        "a snapshot": kernel.overlay is not None,
    }  # fmt: skip
    for what, value in left.items():
        if value:
            wrong(f"left behind: {what} ({value})")
    run.problems += judge_stopped(kernel)
    run.problems += judge_hooks(box.outside, outcome, box.behaviour, default=kernel.default() == NEW_ENTRY)
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
    same_boot = run.records[-1].boot_id == kernel.boot_id  # /run ends with its boot
    if not cold and same_boot and kernel.reboot_packages != REBOOT_ASKED[1:]:
        run.problems.append(f"committed, but a restart is asked for by {kernel.reboot_packages}")
    told = [r for r in run.records if r.data.get("retired") is not None]
    if not cold and kernel is box.new and box.old.alive and not any(r.data["retired"] == 0 for r in told):
        run.problems.append("the old kernel is still there and the journal does not say so")
    if not run.faults and box.old.alive and not box.behaviour.retire_fails:
        run.problems.append("the old kernel is still there although it could go")


def _judge_rollback(run: SpawnRun) -> None:
    box, kernel = run.box, run.box.current
    wrong = run.problems.append
    if not run.faults and box.dark > PROMPT:
        wrong(f"the workloads stood still for {box.dark:.0f} s although nothing hung")
    if kernel.committed or box.flag:
        wrong("rolled back after the commit")
    if kernel.release != box.plan.old_release and not box.excused:
        wrong(f"rolled back, but {kernel.release} runs")
    if kernel.stored_default != box.behaviour.stored_default:
        wrong(f"the boot default is {kernel.stored_default}, it was {box.behaviour.stored_default}")
    if kernel.active - STOPPED != ({ENABLED, BY_HAND} if box.boots == 1 else {ENABLED}):
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

"""Hooks as steps: on the real port with real programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.core.hooks import hook_refusals, hook_warnings
from kupgrade.core.planner import store_for
from kupgrade.core.predict import budget
from kupgrade.core.timeline import verdict
from kupgrade.engines.base import Order
from kupgrade.engines.kexec import KexecEngine
from kupgrade.engines.spawn import SpawnEngine
from kupgrade.errors import ExitCode, KupgradeError
from kupgrade.host.hooks import digest
from kupgrade.machine.hooks import RealHooks
from kupgrade.model.hook import Hook, HookFault, HookPoint
from kupgrade.model.policy import HookOptions
from kupgrade.model.record import Verdict
from kupgrade.model.workload import StoreKind
from kupgrade.steps.base import UndoContext, load
from kupgrade.steps.hook import AnswerForHooks, CallHooks, TellHooks
from tests.fakes import facts as fake_facts
from tests.fakes.drive import UPGRADE, plan, play
from tests.fakes.endings import Behaviour
from tests.fakes.hooks import HOOKS

HERE = UndoContext(same_boot=True, in_new_kernel=False, images_valid=False)


def hook(folder: Path, name: str, text: str, undo: str = "", point: HookPoint = HookPoint.PRE_DUMP) -> Hook:
    paths = []
    for kind, body in ((name, text), (f"{name}.undo", undo)):
        path = folder / kind
        if body:
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        paths.append((str(path), digest(path)) if body else ("", ""))
    return Hook(point, name, *paths[0], *paths[1])


@pytest.fixture
def host() -> Any:
    return SimpleNamespace(hooks=RealHooks(plan()))


def test_they_are_told_what_goes_on(tmp_path: Path, host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Upgrade, step, releases, workloads, whether to do or to undo; what they print is told line by line."""
    told = 'echo "$KUPGRADE_UPGRADE $KUPGRADE_STEP $KUPGRADE_OLD_RELEASE $KUPGRADE_NEW_RELEASE"; '
    told += 'echo "$KUPGRADE_WORKLOADS, $KUPGRADE_ACTION, $KUPGRADE_TIMEOUT"'
    step = CallHooks(HookPoint.PRE_DUMP, (hook(tmp_path, "10-a", told, told),), 7.5)
    step.do(host, step.observe(host))
    step.undo(host, step.observe(host), HERE)
    releases = f"{plan().old_release} {plan().new_release}"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"kupgrade: hook pre-dump.d/10-a: {plan().upgrade} pre-dump {releases}"
    assert lines[1].endswith("web jobs, do, 7.5")
    assert lines[3].endswith("web jobs, undo, 7.5")


@pytest.mark.parametrize(("status", "code"), [(75, ExitCode.NOT_NOW), (1, ExitCode.REFUSED), (3, ExitCode.REFUSED)])
def test_a_no_ends_the_step_and_the_next_is_not_called(tmp_path: Path, host: Any, status: int, code: ExitCode) -> None:
    """75 is not now, every other status but 0 is no, with the last line as the reason."""
    mark = tmp_path / "called"
    hooks = (hook(tmp_path, "10-a", f"echo because; exit {status}"), hook(tmp_path, "20-b", f"touch {mark}"))
    step = CallHooks(HookPoint.PRE_DUMP, hooks, 10)
    with pytest.raises(KupgradeError) as caught:
        step.do(host, step.observe(host))
    assert (caught.value.code, caught.value.why) == (code, f"exit status {status}: because")
    assert not mark.exists()
    assert step.verify(host, step.observe(host)) is Verdict.UNKNOWN


def test_one_that_is_too_slow_says_no(tmp_path: Path, host: Any) -> None:
    """With its timeout in the reason."""
    step = CallHooks(HookPoint.PRE_DUMP, (hook(tmp_path, "10-a", "sleep 1000"),), 0.3)
    with pytest.raises(KupgradeError, match=r"longer than 0\.3 s"):
        step.do(host, step.observe(host))


def test_only_the_process_that_called_them_knows(tmp_path: Path, host: Any) -> None:
    """Done for this process, unknown for the one after a kill: then everything is undone."""
    step = CallHooks(HookPoint.PRE_DUMP, (hook(tmp_path, "10-a", "exit 0"),), 10)
    before = step.observe(host)
    step.do(host, before)
    assert step.verify(host, before) is Verdict.DONE
    assert step.verify(SimpleNamespace(hooks=RealHooks(plan())), before) is Verdict.UNKNOWN


def test_the_inverses_are_called_in_reverse_whatever_they_say(tmp_path: Path, host: Any) -> None:
    """A failed inverse does not end the way back; one that changed, or is not there, is passed over."""
    log = tmp_path / "log"
    hooks = [hook(tmp_path, f"{n}0-x", "exit 0", f"echo {n} >> {log}; exit {n}") for n in (1, 2, 3)]
    Path(hooks[1].undo).write_text("#!/bin/sh\necho changed >> " + str(log))
    step = CallHooks(HookPoint.PRE_DUMP, (*hooks, hook(tmp_path, "40-x", "exit 0")), 10)
    step.undo(host, step.observe(host), HERE)
    assert log.read_text().split() == ["3", "1"]
    assert "30-x.undo, 20-x.undo, 10-x.undo (40-x declares no inverse)" in step.describe_undo()


def test_a_hook_that_is_not_the_planned_one_is_refused(tmp_path: Path, host: Any) -> None:
    """Changed, gone, or writable by others since: nothing is called."""
    for number, spoil in enumerate((lambda p: p.write_text("#!/bin/sh\n"), Path.unlink, lambda p: p.chmod(0o777))):
        found = hook(tmp_path, f"10-{number}", "exit 0 # x")
        spoil(Path(found.path))
        with pytest.raises(KupgradeError, match="not the one of the plan"):
            CallHooks(HookPoint.PRE_DUMP, (found,), 10).observe(host)


def test_after_the_commit_a_failure_is_recorded_and_nothing_else(tmp_path: Path, host: Any) -> None:
    """The others are called all the same; one that has changed is not."""
    mark = tmp_path / "called"
    hooks = [
        hook(tmp_path, "10-a", "exit 75"),
        hook(tmp_path, "20-b", "exit 0"),
        hook(tmp_path, "30-c", f"touch {mark}"),
    ]
    Path(hooks[1].path).write_text("#!/bin/sh\nexit 1\n")
    figures = TellHooks(HookPoint.COMMIT, tuple(hooks), 10).do(host, None)  # type: ignore[arg-type]
    assert figures == {"hooks": 3, "10-a": "exit status 75", "20-b": "not called: its file has changed or is gone"}
    assert mark.exists()


def test_the_old_kernel_answers_for_hooks_of_the_new_one(tmp_path: Path, host: Any) -> None:
    """Its undo calls the inverses here, and not in the new kernel."""
    log = tmp_path / "log"
    step = AnswerForHooks((hook(tmp_path, "10-a", "exit 0", f"echo back >> {log}"),), 10)
    step.undo(host, step.observe(host), replace(HERE, in_new_kernel=True))
    assert not log.exists()
    step.undo(host, step.observe(host), HERE)
    assert log.read_text() == "back\n"


def _points(engine: Any, **changes: Any) -> list[str]:
    facts = fake_facts.facts(hooks=HOOKS, **changes)
    policy, target = fake_facts.policy(), fake_facts.target()
    kind = engine.stores(policy)[-1]
    order = Order(
        UPGRADE, facts, policy, target, store_for(UPGRADE, policy, kind), (fake_facts.workload(),), (), 1000, "/s"
    )
    specs = [s for phase in engine.phases(order) for s in phase.steps]
    return [f"{s.kind} {s.params['point']}" if "point" in s.params else s.kind for s in specs]


@pytest.mark.parametrize(
    ("engine", "changes"), [(KexecEngine(), {}), (SpawnEngine(), {"spawn": fake_facts.spawn()})], ids=["kexec", "spawn"]
)
def test_each_engine_calls_them_where_they_belong(engine: Any, changes: Any) -> None:
    """Each point between the steps that it is named after, and the gate twice."""
    steps = _points(engine, **changes)

    def at(text: str) -> int:
        return steps.index(text)

    assert steps[0] == "call-hooks gate"
    crossing = at("cross") if "cross" in steps else at("hand-over")
    assert at("call-hooks pre-dump") < at("pre-dump") < steps.index("call-hooks gate", 1) < at("gate") < at("freeze")
    assert at("dump") < at("call-hooks post-dump") < crossing < at("call-hooks pre-restore") < at("restore")
    assert (
        at("restore") < at("call-hooks pre-resume") < at("thaw") < at("unlock-network") < at("tell-hooks post-resume")
    )
    assert at("mark-good") < at("tell-hooks commit")
    assert ("answer-for-hooks" in steps) == (engine.name == "spawn")
    if engine.name == "spawn":
        assert at("answer-for-hooks") < at("freeze")


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ("gate: not now", ExitCode.NOT_NOW),
        ("gate: no", ExitCode.REFUSED),
        ("pre-dump: not now", ExitCode.NOT_NOW),
        ("post-dump: not now", ExitCode.ROLLED_BACK),
        ("pre-resume: no", ExitCode.ROLLED_BACK),
        ("post-resume: no", ExitCode.DONE),
        ("commit: not now", ExitCode.DONE),
    ],
)
def test_the_upgrade_ends_with_the_code_of_the_answer(says: str, code: ExitCode) -> None:
    """Not now and no are told as such while nothing stood still; then it is a rollback; after the commit it is done."""
    run = play(Behaviour("a hook speaks", hook_says=says), {})
    assert not run.problems, run.report()
    assert verdict(run.log.records) is code
    if says.startswith("gate"):
        begun = {run.machine.plan.steps[r.step].kind for r in run.log.records if r.step is not None}
        assert begun == {"call-hooks"}, "the first gate is asked before anything is touched"


def test_hooks_that_cannot_be_called_refuse_and_those_without_an_inverse_warn() -> None:
    """Preflight and plan say it with the remedy; hooks that could use up the crossing's time are refused, too."""
    fault = HookFault("/etc/kupgrade/hooks/gate.d/10-a", "is not executable", "chmod 755 it")
    (refusal,) = hook_refusals(fake_facts.facts(hook_faults=(fault,)), fake_facts.policy())
    assert (refusal.fact, refusal.remedy) == (f"{fault.path} is not executable", "chmod 755 it")
    assert hook_refusals(fake_facts.facts(hooks=HOOKS), fake_facts.policy()) == ()
    slow = fake_facts.policy(hooks=HookOptions(blackout_timeout=60.0))
    assert [r.rule for r in hook_refusals(fake_facts.facts(hooks=HOOKS), slow)] == ["hooks leave time for the restore"]
    bare = tuple(replace(each, undo="", undo_digest="") for each in HOOKS)
    warned = hook_warnings(fake_facts.facts(hooks=bare))
    assert len(warned) == 5
    assert "gate.d/10-gate" in warned[0]
    assert hook_warnings(fake_facts.facts(hooks=HOOKS)) == ()


def test_a_plan_is_stale_when_a_hook_has_changed() -> None:
    """What is called is what was shown."""
    other = (replace(HOOKS[0], digest="other"), *HOOKS[1:])
    assert fake_facts.facts(hooks=HOOKS).digest != fake_facts.facts(hooks=other).digest
    assert fake_facts.facts(hooks=HOOKS).digest != fake_facts.facts().digest


def test_the_blackout_counts_those_in_it() -> None:
    """Each at its whole timeout, and the gate's allowance is smaller by them."""
    facts = fake_facts.facts()
    with_hooks = budget(facts, facts.workloads[0], 60, hooks=6.0)
    assert with_hooks.predicted == pytest.approx(budget(facts, facts.workloads[0], 60).predicted + 6.0)
    steps = {s.kind: s for s in plan(StoreKind.DISK).steps}
    assert "hooks" in [term.name for term in plan(StoreKind.DISK).budgets[0].terms]
    assert (
        load(steps["call-hooks"]).describe().endswith("(at most 10 s each)")
        or "2 s each" in load(steps["call-hooks"]).describe()
    )

"""The loop by itself: order of record and effect, failures, interruption, what it tells whoever watches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from kupgrade import executor
from kupgrade.core import recovery
from kupgrade.core.chronicle import OPERATOR
from kupgrade.core.fold import UNOBSERVED, fold
from kupgrade.errors import KupgradeError, NeedsHumanError
from kupgrade.executor import BY_TOOL, Loop, advance, as_kupgrade_error, over, start
from kupgrade.model.plan import Phase, Plan, Scope, Side, StepSpec
from kupgrade.model.record import Now, Outcome, Record, RecordKind, State, Verdict
from kupgrade.steps.base import Nothing, UndoContext
from tests.fakes.drive import FakeClock, plan
from tests.fakes.logs import MemoryLog


@dataclasses.dataclass
class Host:
    """What the scripted steps do, and how they are to fail."""

    log: MemoryLog = dataclasses.field(default_factory=MemoryLog)
    calls: list[str] = dataclasses.field(default_factory=list)
    errors: dict[str, list[Exception]] = dataclasses.field(default_factory=dict)
    verdicts: dict[str, list[Verdict]] = dataclasses.field(default_factory=dict)

    def call(self, name: str) -> None:
        last = self.log.records[-1]
        if name.startswith(("do ", "undo ")) and self.log.durable != len(self.log.records):
            self.calls.append(f"{name} before its intent was on disk")
        self.calls.append(f"{name} after {last.kind.value}")
        if self.errors.get(name):
            raise self.errors[name].pop(0)


@dataclasses.dataclass(frozen=True)
class Scripted:
    """A step that only tells the host what was asked of it."""

    kind: str
    scope: Scope = Scope.BOOT
    irreversible: bool = False
    before: type = Nothing

    def observe(self, host: Host) -> Nothing:
        host.call(f"observe {self.kind}")
        return Nothing()

    def do(self, host: Host, before: Nothing) -> dict[str, float]:
        host.call(f"do {self.kind}")
        return {"bytes": 7}

    def undo(self, host: Host, before: Nothing, context: UndoContext) -> None:
        host.call(f"undo {self.kind}")

    def verify(self, host: Host, before: Nothing) -> Verdict:
        host.call(f"verify {self.kind}")
        left = host.verdicts.get(self.kind)
        return left.pop(0) if left else Verdict.DONE


def spec(kind: str) -> StepSpec:
    return StepSpec(kind, {}, Scope.DISK, kind, kind)


def small_plan() -> Plan:
    phases = (Phase("one", Side.OLD, (spec("first"), spec("second"))),)
    return dataclasses.replace(plan(), phases=phases)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(executor, "load", lambda stored: Scripted(stored.kind))
    return Host()


def loop_on(host: Host, **changes: Any) -> Loop:
    loop = Loop(
        log=host.log, host=host, now=lambda _state: Now(plan().boot_id, plan().old_release, None), clock=FakeClock()
    )
    loop = dataclasses.replace(loop, **changes)
    if not host.log.records:
        start(loop, small_plan(), plan().boot_id)
    return loop


def kinds(host: Host) -> list[str]:
    return [r.kind.value for r in host.log.records]


def test_the_before_image_is_recorded_before_the_effect(host: Host) -> None:
    """Observe, record, act, verify, record; step by step, then the commit and the end."""
    state = advance(loop_on(host))
    assert host.calls[:4] == [
        "observe first after planned",
        "do first after started",
        "verify first after started",
        "observe second after done",
    ]
    assert kinds(host) == ["planned", "started", "done", "started", "done", "committed", "finished"]
    assert over(state) is Outcome.COMMITTED
    assert host.log.records[2].data["bytes"] == 7
    assert host.log.durable == len(host.log.records)


def test_what_is_decided_for_good_is_on_disk_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that something was done may wait for the next record's flush; and nothing waits when the loop ends."""
    lazy: list[RecordKind] = []
    append = MemoryLog.append
    monkeypatch.setattr(
        MemoryLog,
        "append",
        lambda log, record, *, durable=True: (
            durable or lazy.append(record.kind),
            append(log, record, durable=durable),
        ),
    )
    host.errors["do second"] = [KupgradeError("no"), KupgradeError("no")]
    advance(loop_on(host))
    assert lazy == [RecordKind.DONE]
    assert host.log.durable == len(host.log.records)


def test_a_failed_step_is_recorded_and_all_is_undone_in_reverse(host: Host) -> None:
    """The failure's words are in the journal; undo begins with the step that failed."""
    host.errors["do second"] = [KupgradeError("It broke", "a reason", "Do this")]
    state = advance(loop_on(host))
    assert over(state) is Outcome.ROLLED_BACK
    failed = next(r for r in host.log.records if r.kind is RecordKind.FAILED)
    assert failed.data["what"] == "It broke"
    assert failed.data["remedy"] == "Do this"
    assert [c for c in host.calls if c.startswith("undo")] == [
        "undo second after undo-started",
        "undo first after undo-started",
    ]
    asked = next(r for r in host.log.records if r.kind is RecordKind.UNDO_REQUESTED)
    assert asked.data["by"] == BY_TOOL
    assert "It broke" in state.undo_reason


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(28, "No space left on device", "/x"), KeyError("k")])
def test_any_exception_of_a_step_is_recorded(host: Host, error: Exception) -> None:
    """A bug in a step is a failure like another: undone, with its cause told."""
    host.errors["do first"] = [error]
    assert over(advance(loop_on(host))) is Outcome.ROLLED_BACK
    told = as_kupgrade_error("first", error)
    assert told.what.startswith("first failed")
    assert told.why


def test_a_step_that_could_not_be_observed_is_not_undone(host: Host) -> None:
    """Nothing was done, so nothing is taken back; but it counts as begun."""
    host.errors["observe first"] = [KupgradeError("It cannot be told")]
    assert over(advance(loop_on(host))) is Outcome.ROLLED_BACK
    assert not [c for c in host.calls if c.startswith(("undo", "do"))]
    assert host.log.records[1].data == {UNOBSERVED: True}


def test_an_effect_that_is_not_there_is_a_failure(host: Host) -> None:
    """The machine is believed, not the step."""
    host.verdicts["first"] = [Verdict.NOT_DONE]
    assert over(advance(loop_on(host))) is Outcome.ROLLED_BACK
    failed = next(r for r in host.log.records if r.kind is RecordKind.FAILED)
    assert "not-done" in failed.data["why"]


@pytest.mark.parametrize(
    ("verdict", "then"),
    [
        (Verdict.DONE, ["done", "started"]),
        (Verdict.NOT_DONE, ["started", "done"]),
        (Verdict.UNKNOWN, ["failed", "undo-requested"]),
    ],
)
def test_an_open_step_is_asked_about(host: Host, verdict: Verdict, then: list[str]) -> None:
    """After a kill: done is recorded, not done is done again, unknown is undone."""
    loop = loop_on(host)
    host.log.append(Record(2, RecordKind.STARTED, plan().boot_id, 1, 0.0, 0.0, 0, {}))
    host.verdicts["first"] = [verdict]
    advance(loop)
    assert kinds(host)[2:4] == then


def test_the_operator_is_named_when_he_asked(host: Host) -> None:
    """A wish to roll back is met between steps and recorded as the operator's."""
    wishes = iter(["", "", "I want back", "I want back"])
    state = advance(loop_on(host, interrupted=lambda: next(wishes)))
    assert over(state) is Outcome.ROLLED_BACK
    assert (state.undo_reason, state.undo_by) == ("I want back", OPERATOR)


def test_after_the_commit_nobody_is_asked(host: Host) -> None:
    """A wish that comes too late is not even looked at."""

    def wish() -> str:
        assert not fold(host.log.records).committed
        return ""

    assert over(advance(loop_on(host, interrupted=wish))) is Outcome.COMMITTED


def test_an_undo_that_fails_is_tried_again_and_then_left_to_a_person(host: Host) -> None:
    """Three times; then hands off, and asked again nothing is done."""
    host.errors["do first"] = [KupgradeError("broken")]
    host.errors["undo first"] = [KupgradeError("stuck")] * 9
    loop = loop_on(host)
    state = advance(loop)
    assert "keeps failing" in state.hands_off
    assert len([c for c in host.calls if c.startswith("undo")]) == recovery.MAX_UNDO_FAILURES
    length = len(host.log.records)
    assert advance(loop) == state
    assert len(host.log.records) == length


def test_whoever_watches_sees_every_record_with_its_state(host: Host) -> None:
    """The state handed out is the fold up to that record."""
    seen: list[tuple[Record, State]] = []
    loop = loop_on(host, watch=lambda record, state: seen.append((record, state)))
    advance(loop)
    assert [record for record, _ in seen] == list(host.log.records)
    for at, (_, state) in enumerate(seen, 1):
        assert state == fold(host.log.records[:at])


def test_fault_points_lie_around_every_effect(host: Host) -> None:
    """Each step and the commit can be interrupted right before and right after its effect."""
    moments: list[tuple[str, str]] = []
    host.errors["do second"] = [KupgradeError("broken")]
    advance(loop_on(host, faults=lambda step, moment: moments.append((step, moment))))
    assert moments == [
        ("first", "intent"), ("first", "effect"), ("second", "intent"),
        ("second", "undo-intent"), ("second", "undo-effect"), ("first", "undo-intent"), ("first", "undo-effect"),
    ]  # fmt: skip


def test_a_decision_that_nobody_can_act_on_needs_a_person(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision without its step is a bug, and is not guessed away."""
    nonsense: Callable[..., recovery.Decision] = lambda *_: recovery.Decision(recovery.Action.RUN, "no step")  # noqa: E731
    loop = loop_on(host)
    monkeypatch.setattr(executor, "decide", nonsense)
    with pytest.raises(NeedsHumanError):
        advance(loop)


def test_a_wish_that_comes_while_a_step_fails_is_the_operators(host: Host) -> None:
    """Whoever interrupts a step makes it fail: that is no word against the new release."""
    host.errors["do second"] = [KupgradeError("Interrupted")]
    failed = lambda: "I want back" if host.log.records[-1].kind is RecordKind.FAILED else ""  # noqa: E731
    state = advance(loop_on(host, interrupted=failed))
    assert over(state) is Outcome.ROLLED_BACK
    assert (state.undo_reason, state.undo_by) == ("I want back", OPERATOR)


def committed_with(host: Host, *starts: str) -> Loop:
    """A committed upgrade whose first step, one that outlives a reboot, was begun in each of these boots."""
    loop = loop_on(host)
    for boot in starts:
        host.log.append(Record(host.log.next_seq, RecordKind.STARTED, boot, 1, 0.0, 0.0, 0, {}))
    host.log.append(Record(host.log.next_seq, RecordKind.COMMITTED, plan().boot_id, 1, 0.0, 0.0))
    return loop


def test_a_before_image_holds_for_the_boot_it_was_made_in(host: Host) -> None:
    """In that boot what is done again keeps it; in a later one the step looks again."""
    loop = committed_with(host, plan().boot_id)
    host.verdicts["first"] = [Verdict.NOT_DONE]
    advance(loop)
    assert "observe first after committed" not in host.calls
    assert host.calls[:2] == ["verify first after committed", "do first after started"]

    later = Host()
    committed_with(later, plan().boot_id)
    later.log.append(Record(4, RecordKind.COLD, "later", 2, 0.0, 0.0, None, {"release": plan().old_release}))
    advance(loop_on(later, now=lambda _state: Now("later", plan().old_release, None)))
    assert later.calls[:2] == ["observe first after cold", "do first after started"]


def test_after_the_commit_an_open_step_is_done_however_often_it_was_begun(host: Host) -> None:
    """There is no way back any more: killed twice in it, it is done the third time."""
    loop = committed_with(host, plan().boot_id, plan().boot_id)
    host.verdicts["first"] = [Verdict.NOT_DONE]
    assert over(advance(loop)) is Outcome.COMMITTED
    assert RecordKind.FAILED not in [record.kind for record in host.log.records]


def test_the_way_to_start_once_more_is_counted_before_it_is_gone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a start does not return: one that were recorded afterwards would be tried for ever."""
    actions = iter((recovery.Action.REENTER, recovery.Action.STAND))
    monkeypatch.setattr(executor, "decide", lambda *_: recovery.Decision(next(actions), "PIDs are taken"))
    monkeypatch.setattr(Host, "reenter", lambda self, _plan: self.call("reenter"), raising=False)
    advance(loop_on(host))
    assert host.calls == ["reenter after reentering"]


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), UnicodeEncodeError("ascii", "ü", 0, 1, "no")])
def test_whoever_watches_cannot_stop_the_loop(host: Host, error: Exception) -> None:
    """A reader that went away, in the middle of the blackout, must not leave the workloads frozen."""

    def gone(_record: Record, _state: State) -> None:
        raise error

    assert over(advance(loop_on(host, watch=gone))) is Outcome.COMMITTED
    assert kinds(host)[-1] == "finished"

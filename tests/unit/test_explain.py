"""Explanations: plans, refusals, where an upgrade stands, its timeline and verdict. Pure tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.core.explain import (
    StoreChoice,
    changed_facts,
    plan_text,
    preflight_json,
    preflight_text,
    refusals_text,
    span,
)
from kupgrade.core.fold import fold
from kupgrade.core.recovery import decide
from kupgrade.core.standing import stage_of, standing, standing_text, would_undo
from kupgrade.core.timeline import event_text, timeline, verdict
from kupgrade.errors import ExitCode
from kupgrade.model.codec import encode
from kupgrade.model.facts import WorkloadFacts
from kupgrade.model.plan import BlackoutTerm, Budget, Plan, Refusal
from kupgrade.model.record import Now, Record, RecordKind, Stage

PlanWith = Callable[..., Plan]
RecordsOf = Callable[..., tuple[Record, ...]]

OLD_BOOT = "11111111-1111-4111-8111-111111111111"
NEW_BOOT = "22222222-2222-4222-8222-222222222222"
K = RecordKind


def done(*indexes: int, boot: str = OLD_BOOT) -> list[tuple[Any, ...]]:
    """STARTED and DONE of steps."""
    return [(kind, index, {}, boot) for index in indexes for kind in (K.STARTED, K.DONE)]


CROSSING: list[tuple[Any, ...]] = [*done(0, 1, 2, 3), (K.STARTED, 4, {"epoch": 1})]
CROSSED: list[tuple[Any, ...]] = [*CROSSING, (K.CROSSED, None, {"release": "6.12.57"}, NEW_BOOT)]
COMMIT: list[tuple[Any, ...]] = [*CROSSED, *done(5, boot=NEW_BOOT), (K.COMMITTED, None, {}, NEW_BOOT)]
UNDO: tuple[Any, ...] = (K.UNDO_REQUESTED, None, {"reason": "dump failed", "by": "kupgrade"})

STAGES: list[tuple[list[tuple[Any, ...]], Stage]] = [
    ([], Stage.PLANNED),
    (done(0), Stage.STAGING),
    (done(0, 1), Stage.STAGED),
    (done(0, 1, 2), Stage.HANDING_OVER),
    (CROSSING, Stage.HANDING_OVER),
    (CROSSED, Stage.CROSSED),
    ([*CROSSED, (K.STARTED, 5, {}, NEW_BOOT)], Stage.VERIFYING),
    (COMMIT, Stage.COMMITTED),
    ([*COMMIT, *done(6, boot=NEW_BOOT)], Stage.SERVING),
    ([*COMMIT, *done(6, 7, boot=NEW_BOOT), (K.FINISHED, None, {"outcome": "committed"}, NEW_BOOT)], Stage.CLEANED),
    ([*done(0), UNDO], Stage.UNDOING),
    ([*done(0), UNDO, (K.FINISHED, None, {"outcome": "rolled-back"})], Stage.ROLLED_BACK),
    ([*CROSSING, (K.HANDS_OFF, None, {"reason": "a third release runs"})], Stage.ASK_HUMAN),
]


def test_a_plan_is_told_whole(plan_with: PlanWith) -> None:
    """Every step numbered with its undo, phases with kernel and blackout, terms, losses, warnings, fallbacks."""
    text = plan_text(plan_with(fallbacks=("pmem: no such device, so disk",)))
    for number in range(1, 9):
        assert f"{number}. do " in text
    for words in (
        "from 6.12.48 to 6.12.57",
        "hand over (old kernel) [blackout]",
        "take over (new kernel) [blackout]",
        "undo: undo freeze",
        "none, it cannot be undone",
        "demo: predicted 2.5 s, within the limit of 5 s",
        "96 MiB at 200 MiB/s",
        "TCP connections to 10.0.0.9: the peer may time out",
        "no hardware watchdog",
        "pmem: no such device",
    ):
        assert words in text


def test_an_exceeded_limit_stands_out(plan_with: PlanWith) -> None:
    """Over the limit, or without one, is said."""
    over = Budget("a", (BlackoutTerm("dump", 7.0, "measured"),), 5.0)
    free = Budget("b", (BlackoutTerm("dump", 7.0, "measured"),), None)
    text = plan_text(plan_with(budgets=(over, free)))
    assert "a: predicted 7 s, OVER the limit of 5 s" in text and "b: predicted 7 s, no limit set" in text


def test_empty_sections_are_left_out(plan_with: PlanWith) -> None:
    """No losses, no heading for them."""
    text = plan_text(plan_with(losses=(), warnings=(), budgets=()))
    assert "Not kept" not in text and "Warnings" not in text and "no workload stands still" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.3404, "340 ms"), (2.5, "2.5 s"), (2, "2 s"), (0, "0 ms"), (125, "2 min 5 s"), (120, "2 min")],
)
def test_spans(seconds: float, text: str) -> None:
    """Times are written as people do."""
    assert span(seconds) == text


def test_refusals_say_rule_fact_and_remedy() -> None:
    """All three, for each."""
    text = refusals_text((Refusal("r1", "f1", "m1"), Refusal("r2", "f2", "m2")))
    assert all(word in text for word in ("r1", "f1", "m1", "r2", "f2", "m2"))


def test_changed_facts_are_named() -> None:
    """What is gone, new or other; what is the same is not named."""
    assert changed_facts({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "5"}) == (
        "b: was '2', is '4'",
        "c: was '3', is 'absent'",
        "d: was 'absent', is '5'",
    )


def test_preflight_names_absent_workloads() -> None:
    """A workload that does not run is told with the reason, in text and JSON."""
    facts: Any = SimpleNamespace(
        release="6.12.48",
        architecture="x86_64",
        boot_id=OLD_BOOT,
        unknown={},
        workloads=(WorkloadFacts("demo", "demo.service", None, "the unit is inactive"),),
    )
    refusals = {"kexec": (Refusal("r", "f", "m"),)}
    stores: StoreChoice = ("", {}, {"policy": "copy", "in_place": "no"})
    assert "demo: does not run (the unit is inactive)" in preflight_text(facts, refusals, stores)
    value = preflight_json(facts, refusals, stores)
    assert value["workloads"][0]["running"] is False and value["engines"]["kexec"] == [
        {"rule": "r", "fact": "f", "remedy": "m"}
    ]
    json.dumps(value)


@pytest.mark.parametrize(("events", "stage"), STAGES)
def test_stages(plan_with: PlanWith, records_of: RecordsOf, events: list[tuple[Any, ...]], stage: Stage) -> None:
    """The records of each moment give its stage."""
    assert stage_of(fold(records_of(plan_with(), *events))) is stage


@pytest.mark.parametrize(("events", "stage"), STAGES)
@pytest.mark.parametrize("worker", [None, 4711])
def test_every_stage_has_its_sentences(
    plan_with: PlanWith, records_of: RecordsOf, events: list[tuple[Any, ...]], stage: Stage, worker: int | None
) -> None:
    """Nothing is left unsaid at any moment, and the JSON twin says the same."""
    state = fold(records_of(plan_with(), *events))
    boot = state.boot_id
    release = "6.12.57" if boot == NEW_BOOT else "6.12.48"
    found = standing(state, decide(state, Now(boot, release, None)), worker)
    assert found.stage == stage.value and all((found.stands, found.safe, found.todo, found.next_action, found.next_why))
    text = standing_text(found)
    assert found.next_why in text and found.safe in text
    json.dumps(encode(found))


def test_the_crossing_is_not_an_open_step_of_the_new_kernel(plan_with: PlanWith, records_of: RecordsOf) -> None:
    """Nobody can record the crossing as done; in the new kernel it is no open step."""
    state = fold(records_of(plan_with(), *CROSSED))
    assert standing(state, decide(state, Now(NEW_BOOT, "6.12.57", None)), None).open_step == ""


def test_safety_follows_the_images(plan_with: PlanWith, records_of: RecordsOf) -> None:
    """With complete images a power cut ends in a restore; after the commit the way back is a new upgrade."""

    def safe(events: list[tuple[Any, ...]]) -> str:
        state = fold(records_of(plan_with(), *events))
        return standing(state, decide(state, Now(state.boot_id, "6.12.48", None)), None).safe

    assert "old release serves" in safe(done(0, 1))
    assert "restored from their checkpoint" in safe(CROSSING)
    assert "new upgrade" in safe(COMMIT)
    assert "do not delete them" in safe([*CROSSING, (K.HANDS_OFF, None, {"reason": "?"})])


def test_who_serves_is_never_guessed(plan_with: PlanWith, records_of: RecordsOf) -> None:
    """After the commit, too: a machine that restarted may run the old release, and a thaw may have failed."""

    def told(events: list[tuple[Any, ...]], release: str) -> str:
        state = fold(records_of(plan_with(), *events))
        found = standing(state, decide(state, Now(state.boot_id, release, None)), None)
        return f"{found.stands} {found.safe}"

    cold = (K.COLD, None, {"release": "6.12.48", "reason": "restarted"}, "third-boot")
    restarted = told([*COMMIT, cold], "6.12.48")
    assert "6.12.48 serves" in restarted
    assert "new release serves" not in restarted and "run on the new kernel" not in restarted
    stuck = told([*COMMIT, (K.STARTED, 6, {}, NEW_BOOT), (K.HANDS_OFF, None, {"reason": "thaw failed"})], "6.12.57")
    assert "new release serves" not in stuck and "evidence is kept" in stuck and "do not delete them" not in stuck


def test_an_undo_that_needed_two_attempts_is_no_failed_step(plan_with: PlanWith, records_of: RecordsOf) -> None:
    """An operator's wish fulfilled before the freeze is a clean rollback, however hard it was."""
    wish = (K.UNDO_REQUESTED, None, {"reason": "no", "by": "operator"})
    failed = (K.FAILED, 0, {"error": "busy", "code": 1})
    undo = [(K.UNDO_STARTED, 0), failed, (K.UNDO_STARTED, 0), (K.UNDONE, 0)]
    end = (K.FINISHED, None, {"outcome": "rolled-back"})
    assert verdict(records_of(plan_with(), *done(0), wish, *undo, end)) is ExitCode.ROLLED_BACK
    assert verdict(records_of(plan_with(), (K.STARTED, 0), failed, UNDO, *undo, end)) is ExitCode.FAILED


def test_an_undo_is_the_open_step(plan_with: PlanWith, records_of: RecordsOf) -> None:
    """A step that is being undone is told as such."""
    state = fold(records_of(plan_with(), *done(0, 1), UNDO, (K.UNDO_STARTED, 1)))
    found = standing(state, decide(state, Now(OLD_BOOT, "6.12.48", None)), None)
    assert found.open_step == "2 of 8: undo of do load-kernel"


def test_would_undo_goes_backwards(plan_with: PlanWith, records_of: RecordsOf) -> None:
    """Only steps with an effect, the last one first."""
    state = fold(records_of(plan_with(), *done(0), (K.STARTED, 1)))
    assert would_undo(state) == ("load-kernel: undo load-kernel", "prepare-store: undo prepare-store")


def test_the_timeline_tells_every_record(plan_with: PlanWith, records_of: RecordsOf) -> None:
    """One event a record, with elapsed seconds, step number and what happened."""
    failed = (K.FAILED, 1, {"error": "kexec_file_load failed: EPERM", "code": 1})
    note = (K.NOTE, None, {"blackout": {"demo": 1.25}})
    events = timeline(records_of(plan_with(), *done(0), (K.STARTED, 1), failed, UNDO, note))
    lines = [event_text(event) for event in events]
    assert [event.event for event in events] == [
        "planned",
        "started",
        "done",
        "started",
        "failed",
        "undo-requested",
        "note",
    ]
    assert "[2/8] FAILED: do load-kernel (kexec_file_load failed: EPERM)" in lines[4]
    assert lines[1].startswith("     2.0 s  [1/8] begin: do prepare-store") and "rolling back (dump failed)" in lines[5]
    assert "blackout demo 1.25" in lines[6]
    json.dumps(encode(events))


@pytest.mark.parametrize("kind", list(RecordKind))
def test_every_kind_of_record_can_be_told(plan_with: PlanWith, kind: RecordKind) -> None:
    """No record is without words."""
    from kupgrade.core.timeline import event

    record = Record(2, kind, OLD_BOOT, 1, 0.0, 0.0, 99, {"reason": "r"})
    assert event_text(event(record, plan_with(), 0.0))


@given(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.floats() | st.lists(st.text(max_size=3))))
def test_strange_data_is_told_all_the_same(data: dict[str, Any]) -> None:
    """Figures of another release of the tool never break the timeline."""
    from kupgrade.core.timeline import event

    plan: Any = SimpleNamespace(steps=())
    for kind in (K.NOTE, K.DONE, K.FAILED, K.HANDS_OFF):
        assert event_text(event(Record(2, kind, OLD_BOOT, 1, 0.0, 0.0, None, data), plan, 0.0))


FINISHED = (K.FINISHED, None, {"outcome": "rolled-back"})


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([], ExitCode.INTERRUPTED),
        (STAGES[9][0], ExitCode.DONE),
        (STAGES[12][0], ExitCode.NEEDS_HUMAN),
        ([*done(0, 1, 2), UNDO, FINISHED], ExitCode.ROLLED_BACK),
        ([*done(0), UNDO, FINISHED], ExitCode.ROLLED_BACK),
        ([(K.STARTED, 0), (K.FAILED, 0, {"code": 1}), UNDO, FINISHED], ExitCode.FAILED),
        ([(K.STARTED, 0), (K.FAILED, 0, {"code": 3}), UNDO, FINISHED], ExitCode.REFUSED),
        ([(K.STARTED, 0), (K.FAILED, 0, {"code": 6}), UNDO, FINISHED], ExitCode.OVER_BUDGET),
        ([(K.STARTED, 0), (K.FAILED, 0, {"code": 75}), UNDO, FINISHED], ExitCode.NOT_NOW),
        ([(K.STARTED, 0), (K.FAILED, 0, {"code": "x"}), UNDO, FINISHED], ExitCode.FAILED),
        ([(K.STARTED, 0), (K.FAILED, 0, {}), UNDO, FINISHED], ExitCode.FAILED),
        ([*done(0, 1), (K.STARTED, 2), (K.FAILED, 2, {"code": 3}), UNDO, FINISHED], ExitCode.ROLLED_BACK),
    ],
)
def test_verdicts(plan_with: PlanWith, records_of: RecordsOf, events: list[tuple[Any, ...]], code: ExitCode) -> None:
    """The exit code follows from how far it came and why it ended."""
    assert verdict(records_of(plan_with(), *events)) is code

"""The table of decisions: what the journal says, what runs now, what to do. Every row of the design, and its edges."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from kupgrade.core.fold import UNOBSERVED, apply, fold
from kupgrade.core.kinds import REPEATED
from kupgrade.core.recovery import (
    MAX_FAILURES_AFTER_COMMIT,
    MAX_REENTRIES,
    MAX_UNDO_FAILURES,
    Action,
    Decision,
    decide,
)
from kupgrade.core.stakes import armed, images_valid, jump_cut_short, step_index
from kupgrade.model.codec import encode
from kupgrade.model.ids import Ticket
from kupgrade.model.record import RELEASED, Now, Outcome, Record, RecordKind, State
from kupgrade.model.schedule import Terms
from kupgrade.model.workload import StoreKind
from tests.fakes.drive import plan

PLAN = plan(hooks=())
KINDS = [spec.kind for spec in PLAN.steps]
OLD_BOOT, NEW_BOOT, THIRD_BOOT = PLAN.boot_id, "boot-b", "boot-c"
OLD, NEW = PLAN.old_release, PLAN.new_release
TICKET = str(Ticket(PLAN.upgrade, 1))
FIRST = Record(1, RecordKind.PLANNED, OLD_BOOT, 1, 0.0, 0.0, data={"plan": encode(PLAN)})
START = fold([FIRST])

Event = tuple[Any, ...]


def after(*events: Event, state: State = START) -> State:
    """The state after events: (kind of record, kind of step or None, boot, data); claims raise the epoch."""
    for event in events:
        kind, step, boot, data = (*event, *(None, OLD_BOOT, {})[len(event) - 1 :])
        epoch = state.epoch + (kind in (RecordKind.CROSSED, RecordKind.FELL_BACK, RecordKind.COLD))
        index = KINDS.index(step) if isinstance(step, str) else step
        state = apply(state, Record(state.last_seq + 1, kind, boot, epoch, 0.0, 0.0, index, data))
    return state


def done(upto: str, boot: str = OLD_BOOT, since: str = "") -> list[Event]:
    """STARTED and DONE of every step after `since` up to and with `upto`."""
    first = KINDS.index(since) + 1 if since else 0
    last = len(KINDS) - 1 - KINDS[::-1].index(upto)
    events: list[Event] = []
    for index in range(first, last + 1):
        events += [(RecordKind.STARTED, index, boot, before(KINDS[index])), (RecordKind.DONE, index, boot)]
    return events


def before(kind: str) -> dict[str, Any]:
    return {"epoch": 1} if kind == "cross" else {}


def begun(step: str, boot: str = OLD_BOOT) -> Event:
    return (RecordKind.STARTED, step, boot, before(step))


ARMED = [*done("dump"), begun("cross")]
CROSSED = [*ARMED, (RecordKind.CROSSED, None, NEW_BOOT)]
VERIFIED = [*CROSSED, *done("disarm", NEW_BOOT, since="cross")]
COMMITTED = [*VERIFIED, (RecordKind.COMMITTED, None, NEW_BOOT)]
FELL_BACK = [*ARMED, (RecordKind.FELL_BACK, None, NEW_BOOT, {"reason": "it panicked"})]
HERE = Now(OLD_BOOT, OLD, None)
THERE = Now(NEW_BOOT, NEW, TICKET)
BACK = Now(NEW_BOOT, OLD, None)


def answer(events: list[Event], now: Now) -> tuple[Action, str]:
    """The action, and the kind of the step it concerns."""
    decision = decide(after(*events), now)
    return decision.action, "" if decision.step is None else KINDS[decision.step]


ROWS: dict[str, tuple[list[Event], Now, Action, str]] = {
    "planned: the first step": ([], HERE, Action.RUN, "prepare-store"),
    "a step done: the next one": (done("gate"), HERE, Action.RUN, "pause-watchdogs"),
    "step open, same boot: ask the machine": ([*done("lock-network"), begun("freeze")], HERE, Action.VERIFY, "freeze"),
    "step open that cannot be seen: again": ([*done("pre-dump"), begun("gate")], HERE, Action.RUN, "gate"),
    "step failed once: undo all": (
        [*done("lock-network"), begun("freeze"), (RecordKind.FAILED, "freeze")],
        HERE, Action.REQUEST_UNDO, "freeze",
    ),
    "step twice begun, never done: undo all": (
        [*done("pre-dump"), begun("gate"), begun("gate")], HERE, Action.REQUEST_UNDO, "gate",
    ),
    "armed, same boot: the crossing did not happen": (ARMED, HERE, Action.REQUEST_UNDO, "cross"),
    "armed, target release, our ticket: claim": (ARMED, THERE, Action.CLAIM, ""),
    "armed, old release: the machine fell back": (ARMED, BACK, Action.FALL_BACK, ""),
    "crossed, old release: the machine fell back": (CROSSED, Now(THIRD_BOOT, OLD, None), Action.FALL_BACK, ""),
    "crossed: go on": (CROSSED, THERE, Action.RUN, "restore"),
    "verified: commit before the thaw": (VERIFIED, THERE, Action.COMMIT, ""),
    "committed: thaw": (COMMITTED, THERE, Action.RUN, "thaw"),
    "committed, old release: cold": (COMMITTED, Now(THIRD_BOOT, OLD, None), Action.COLD, ""),
    "committed, new release again: cold": (COMMITTED, Now(THIRD_BOOT, NEW, None), Action.COLD, ""),
    "everything done: finish": (
        [*COMMITTED, *done("unstage-initrd", NEW_BOOT, since="disarm")], THERE, Action.FINISH, "",
    ),
    "nothing armed, new boot: a foreign reboot": (done("gate"), BACK, Action.FALL_BACK, ""),
    "nothing armed, no images, any release": (done("gate"), Now(NEW_BOOT, "6.1.0-x", None), Action.FALL_BACK, ""),
    "nothing armed, images, new release": (done("dump"), Now(NEW_BOOT, NEW, None), Action.ASK_HUMAN, ""),
    "nothing armed, images, old release": (done("dump"), BACK, Action.FALL_BACK, ""),
    "armed, third release": (ARMED, Now(NEW_BOOT, "6.1.0-x", None), Action.ASK_HUMAN, ""),
    "committed, third release": (COMMITTED, Now(THIRD_BOOT, "6.1.0-x", None), Action.ASK_HUMAN, ""),
    "armed, new release without a ticket": (ARMED, Now(NEW_BOOT, NEW, None), Action.ASK_HUMAN, ""),
    "armed, new release, a ticket of another upgrade": (
        ARMED, Now(NEW_BOOT, NEW, "20200101-000000-abcdef:1"), Action.ASK_HUMAN, "",
    ),
    "armed, new release, a ticket of another epoch": (
        ARMED, Now(NEW_BOOT, NEW, f"{PLAN.upgrade}:2"), Action.ASK_HUMAN, "",
    ),
    "crossed, the new release a second time": (CROSSED, Now(THIRD_BOOT, NEW, TICKET), Action.ASK_HUMAN, ""),
    "rolling back, the new release comes up": (FELL_BACK, Now(THIRD_BOOT, NEW, None), Action.ASK_HUMAN, ""),
    "fell back: restore": (FELL_BACK, BACK, Action.UNDO, "dump"),
    "fell back, PIDs taken: once more": (FELL_BACK, Now(NEW_BOOT, OLD, None, False), Action.REENTER, ""),
    "fell back, PIDs taken, images dead: go on": (
        [*FELL_BACK, (RecordKind.UNDONE, "dump", NEW_BOOT), (RecordKind.UNDO_STARTED, "freeze", NEW_BOOT)],
        Now(NEW_BOOT, OLD, None, False), Action.UNDO, "freeze",
    ),
    "fell back, PIDs taken too often: try": (
        [*FELL_BACK, *([(RecordKind.REENTERING, None, NEW_BOOT)] * MAX_REENTRIES)],
        Now(NEW_BOOT, OLD, None, False), Action.UNDO, "dump",
    ),
    "restored, cut before the thaw: restore again": (
        [*FELL_BACK, (RecordKind.UNDONE, "dump", NEW_BOOT), (RecordKind.FELL_BACK, None, THIRD_BOOT)],
        Now(THIRD_BOOT, OLD, None), Action.UNDO, "dump",
    ),
    "thawed in the rollback, cut: the images are dead": (
        [
            *FELL_BACK, (RecordKind.UNDONE, "dump", NEW_BOOT), (RecordKind.UNDO_STARTED, "freeze", NEW_BOOT),
            (RecordKind.FELL_BACK, None, THIRD_BOOT),
        ],
        Now(THIRD_BOOT, OLD, None), Action.UNDO, "freeze",
    ),
    "thawed in the rollback, cut, new release": (
        [*FELL_BACK, (RecordKind.UNDONE, "dump", NEW_BOOT), (RecordKind.UNDO_STARTED, "freeze", NEW_BOOT)],
        Now(THIRD_BOOT, NEW, None), Action.FALL_BACK, "",
    ),
    "asked to roll back in the old kernel: thaw first": (
        [*done("freeze"), (RecordKind.UNDO_REQUESTED, None)], HERE, Action.UNDO, "freeze",
    ),
    "asked to roll back in the new kernel: from the last step": (
        [*VERIFIED, (RecordKind.UNDO_REQUESTED, None, NEW_BOOT)], THERE, Action.UNDO, "disarm",
    ),
    "undone in the new kernel: go back": (
        [*CROSSED, (RecordKind.UNDO_REQUESTED, None, NEW_BOOT)], THERE, Action.UNDO, "cross",
    ),
    "asked to roll back after the commit": (
        [*COMMITTED, (RecordKind.UNDO_REQUESTED, None, NEW_BOOT)], THERE, Action.ASK_HUMAN, "",
    ),
    "everything undone: finish": ([(RecordKind.UNDO_REQUESTED, None)], HERE, Action.FINISH, ""),
    "an undo that keeps failing": (
        [*done("freeze"), (RecordKind.UNDO_REQUESTED, None)]
        + [(RecordKind.UNDO_STARTED, "freeze"), (RecordKind.FAILED, "freeze")] * MAX_UNDO_FAILURES,
        HERE, Action.ASK_HUMAN, "freeze",
    ),
    "a failure after the commit: again": (
        [*COMMITTED, begun("thaw", NEW_BOOT), (RecordKind.FAILED, "thaw", NEW_BOOT)], THERE, Action.RUN, "thaw",
    ),
    "failures after the commit: a person": (
        [*COMMITTED] + [begun("thaw", NEW_BOOT), (RecordKind.FAILED, "thaw", NEW_BOOT)] * MAX_FAILURES_AFTER_COMMIT,
        THERE, Action.ASK_HUMAN, "thaw",
    ),
    "cold: only what outlives a reboot": (
        [*COMMITTED, (RecordKind.COLD, None, THIRD_BOOT, {"release": OLD})],
        Now(THIRD_BOOT, OLD, None), Action.RUN, "unlock-network",
    ),
    "cold on the old release: its default stays": (
        [
            *COMMITTED, *done("start-units", NEW_BOOT, since="disarm"),
            (RecordKind.COLD, None, THIRD_BOOT, {"release": OLD}),
        ],
        Now(THIRD_BOOT, OLD, None), Action.RUN, "wipe-images",
    ),
    "cold on the new release: it becomes the default": (
        [
            *COMMITTED, *done("start-units", NEW_BOOT, since="disarm"),
            (RecordKind.COLD, None, THIRD_BOOT, {"release": NEW}),
        ],
        Now(THIRD_BOOT, NEW, None), Action.RUN, "mark-good",
    ),
    "over": ([(RecordKind.FINISHED, None, OLD_BOOT, {"outcome": "rolled-back"})], HERE, Action.NOTHING, ""),
    "hands off stays hands off": (
        [*ARMED, (RecordKind.HANDS_OFF, None, NEW_BOOT, {"reason": "cannot be placed"})], BACK, Action.ASK_HUMAN, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_table(row: str) -> None:
    """What the journal says and what runs now give exactly one answer."""
    events, now, action, step = ROWS[row]
    assert answer(events, now) == (action, step)


def test_every_decision_has_a_reason_in_words() -> None:
    """An operator can read why, whatever the decision."""
    for events, now, *_ in ROWS.values():
        assert len(decide(after(*events), now).why) > 5


def test_every_action_occurs_in_the_table() -> None:
    """No action is without a row; an instance stands, an upgrade never does (tests/steps/test_instance.py)."""
    assert {action for _, _, action, _ in ROWS.values()} == set(Action) - {Action.STAND, Action.WAIT}


HELD = replace(START, terms=Terms(hold=True))


def test_an_upgrade_that_is_held_waits_before_anybody_notices() -> None:
    """What is only written to disk is done; before the kernel is loaded it waits, until a note lets it go on."""
    assert decide(HELD, HERE).action is Action.RUN
    first = KINDS.index("load-kernel")
    ready = after(*done(KINDS[first - 1]), state=HELD)
    assert decide(ready, HERE).action is Action.WAIT
    note = (RecordKind.NOTE, None, OLD_BOOT, {RELEASED: "the window is open"})
    found = decide(after(note, state=ready), HERE)
    assert (found.action, found.step) == (Action.RUN, first)
    other = after((RecordKind.NOTE, None, OLD_BOOT, {"blackout": {"web": 1.0}}), state=ready)
    assert decide(other, HERE).action is Action.WAIT


def test_an_upgrade_that_is_held_can_be_taken_back_and_survives_a_reboot() -> None:
    """A wish to roll back undoes it; another boot takes it back as any upgrade that never armed."""
    ready = after(*done(KINDS[KINDS.index("load-kernel") - 1]), state=HELD)
    undoing = after((RecordKind.UNDO_REQUESTED, None, OLD_BOOT, {"reason": "no"}), state=ready)
    assert decide(undoing, HERE).action is Action.UNDO
    assert decide(ready, BACK).action is Action.FALL_BACK


def test_nothing_that_is_begun_is_held() -> None:
    """A hold that comes too late stops nothing: no step stands half done for days."""
    begun_already = after(*done("gate"), state=HELD)
    assert decide(begun_already, HERE).action is Action.RUN


def test_terms_come_from_the_first_record() -> None:
    """On which terms an upgrade was begun is on disk; a journal without them has the ordinary ones."""
    data = {"plan": encode(PLAN), "digest": PLAN.digest, "terms": encode(Terms(automatic=True, hold=True))}
    assert fold([replace(FIRST, data=data)]).terms == Terms(automatic=True, hold=True)
    assert START.terms == Terms()
    at_once = after((RecordKind.NOTE, None, OLD_BOOT, {RELEASED: "now", "at_once": True}), state=HELD)
    assert at_once.terms == Terms(at_once=True)


@pytest.mark.parametrize("kind", sorted(set(KINDS[: KINDS.index("cross")]) - {"stage-initrd"}))
def test_an_open_step_is_asked_about_or_repeated(kind: str) -> None:
    """Killed in any step of the old kernel, the next worker asks or, where that cannot be seen, does it again."""
    index = KINDS.index(kind)
    events = [*(done(KINDS[index - 1]) if index else []), begun(kind)]
    assert answer(events, HERE) == (Action.RUN if kind in REPEATED else Action.VERIFY, kind)


def test_images_live_from_the_dump_to_the_intent_to_let_a_copy_run() -> None:
    """Valid from the begin of the dump, dead after the commit, the thaw, or a withdrawal in the boot of the dump."""
    assert not images_valid(START)
    assert images_valid(after(*done("dump")))
    assert images_valid(after(*VERIFIED))
    assert not images_valid(after(*COMMITTED))
    assert not images_valid(after(*VERIFIED, begun("thaw", NEW_BOOT)))
    withdrawn = after(*done("dump"), (RecordKind.UNDO_REQUESTED, None), (RecordKind.UNDO_STARTED, "dump"))
    assert not images_valid(withdrawn)
    assert images_valid(after(*FELL_BACK, (RecordKind.UNDO_STARTED, "dump", NEW_BOOT)))
    assert not images_valid(after(*FELL_BACK, (RecordKind.UNDO_STARTED, "freeze", NEW_BOOT)))


def test_withdrawn_images_stay_dead_in_every_later_boot() -> None:
    """An undo of the dump that began in the boot of the dump is not forgotten when a later boot repeats it."""
    state = after(*done("dump"), (RecordKind.UNDO_REQUESTED, None), (RecordKind.UNDO_STARTED, "dump"))
    state = after((RecordKind.FELL_BACK, None, NEW_BOOT), state=state)
    for event in ((RecordKind.UNDO_STARTED, "dump", NEW_BOOT), (RecordKind.UNDONE, "dump", NEW_BOOT)):
        state = after(event, state=state)
        assert not images_valid(state)
    assert decide(state, Now(NEW_BOOT, OLD, None, False)).action is Action.UNDO


def test_a_jump_can_have_been_cut_short_only_once_one_was_begun() -> None:
    """File systems are thawed first in a worker that may follow one killed at a jump."""
    assert not jump_cut_short(after(*done("dump")))
    assert jump_cut_short(after(*ARMED))
    assert armed(after(*ARMED))
    assert not armed(START)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_state_has_an_answer(data: st.DataObject) -> None:
    """Whatever the records, and whatever runs, decide answers with a step that exists, and never raises."""
    kinds = [k for k in RecordKind if k is not RecordKind.PLANNED]
    of_steps = {
        RecordKind.STARTED, RecordKind.DONE, RecordKind.FAILED, RecordKind.UNDO_STARTED, RecordKind.UNDONE
    }  # fmt: skip
    state = START
    for _ in range(data.draw(st.integers(0, 12))):
        kind = data.draw(st.sampled_from(kinds))
        step = data.draw(st.integers(0, len(KINDS) - 1)) if kind in of_steps else None
        values = {"outcome": data.draw(st.sampled_from(Outcome)).value} if kind is RecordKind.FINISHED else {}
        state = after((kind, step, data.draw(st.sampled_from([OLD_BOOT, NEW_BOOT])), values), state=state)
    now = Now(
        data.draw(st.sampled_from([OLD_BOOT, NEW_BOOT, THIRD_BOOT])),
        data.draw(st.sampled_from([OLD, NEW, "6.1.0-x"])),
        data.draw(st.sampled_from([None, TICKET, "x"])),
        data.draw(st.sampled_from([None, True, False])),
    )
    decision = decide(state, now)
    assert isinstance(decision, Decision)
    assert decision.step is None or 0 <= decision.step < len(KINDS)
    if state.committed:
        assert decision.action not in (Action.UNDO, Action.CLAIM, Action.FALL_BACK, Action.REENTER)


def test_an_unknown_kind_has_no_index() -> None:
    """A plan without a step of a kind has no position for it."""
    assert step_index(START, "dance") is None
    assert UNOBSERVED not in (START.steps[0].before or {})


def test_images_in_memory_end_with_the_machine() -> None:
    """With such a store any restart before the commit is taken back without them, whatever release came up."""
    in_memory = dataclasses.replace(PLAN, store=StoreKind.WINDOW.value)
    dumped, back = (dataclasses.replace(after(*events), plan=in_memory) for events in (done("dump"), FELL_BACK))
    assert images_valid(dumped)
    assert not images_valid(back)
    for release in (OLD, NEW, "6.1.0-x"):
        assert decide(dumped, Now(NEW_BOOT, release, None)).action is Action.FALL_BACK


def test_a_rollback_that_restarts_the_machine_every_time_ends() -> None:
    """A restore that panics the old kernel, too, is not tried in every boot for ever: the machine must come up."""
    state = after(*FELL_BACK, (RecordKind.UNDO_STARTED, "dump", NEW_BOOT))
    boots = 0
    while (decision := decide(state, Now(f"boot-{boots}", OLD, None))).action is Action.FALL_BACK and boots < 50:
        fallen = (RecordKind.FELL_BACK, None, f"boot-{boots}")
        state = after(fallen, (RecordKind.UNDO_STARTED, "dump", f"boot-{boots}"), state=state)
        boots += 1
    assert decision.action is Action.ASK_HUMAN
    assert MAX_REENTRIES < boots < 50
    assert images_valid(state), "they are what the person needs"

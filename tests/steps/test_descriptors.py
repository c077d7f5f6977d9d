"""Holding and returning of stored descriptors: what is refused, what an undo does, what a verdict means."""

from __future__ import annotations

from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.model.record import Verdict
from kupgrade.steps.base import Nothing, UndoContext
from kupgrade.steps.crossing import Armed, Cross
from kupgrade.steps.descriptors import HoldDescriptors, ReturnDescriptors
from tests.steps import test_answers

HOLD = HoldDescriptors("kupgrade-fds-x", ("a.service",), (), ("a.service: table",))
RETURN = ReturnDescriptors("kupgrade-fds-x", ("a.service: table",))
CROSS = Cross(1, "7.3", "k", "i", "c", None, "kupgrade-fds-x")


def asked(**answers: Any) -> Any:
    """A host with these answers."""
    return test_answers.Host(**answers)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"running": ["a.service"], "held": False}, "a.service runs"),
        ({"running": [], "held": True}, "cannot be handed"),
        ({"running": [], "held": None}, "cannot be handed"),
    ],
)
def test_what_may_change_or_is_held_by_others_is_not_held(answers: dict[str, object], told: str) -> None:
    """Nothing was touched then."""
    with pytest.raises(KupgradeError, match=told):
        HOLD.observe(asked(**answers))
    assert HOLD.observe(asked(running=[], held=False)) == Nothing()


@pytest.mark.parametrize(
    ("answer", "verdict"), [(True, Verdict.DONE), (False, Verdict.NOT_DONE), (None, Verdict.UNKNOWN)]
)
def test_it_is_held_when_the_kernel_says_so(answer: bool | None, verdict: Verdict) -> None:
    """A session that ended with its holder is none."""
    assert HOLD.verify(asked(held=answer), Nothing()) is verdict


@pytest.mark.parametrize(("same_boot", "calls"), [(True, ["let_go"]), (False, ["give_back"])])
def test_the_way_back_depends_on_the_kernel_that_runs(same_boot: bool, calls: list[str]) -> None:
    """In the boot in which they were taken the stores have them; in every other one they have to be returned."""
    host = asked(give_back={"a.service: table": "returned"})
    figures = HOLD.undo(host, Nothing(), UndoContext(same_boot, False, True))
    assert host.calls == calls
    assert figures == (None if same_boot else {"a.service: table": "returned"})


@pytest.mark.parametrize("answer", [False, None])
def test_nothing_is_left_behind_by_a_jump(answer: bool | None) -> None:
    """A session that is gone, or cannot be asked for, keeps the machine where it is."""
    host = asked(held=answer)
    with pytest.raises(KupgradeError, match="would not reach"):
        CROSS.do(host, Armed(1))
    assert host.calls == ["held"]
    there = asked(held=True)
    CROSS.do(there, Armed(1))
    assert there.calls == ["held", "cross"]


@pytest.mark.parametrize(("done", "verdict"), [(True, Verdict.DONE), (False, Verdict.NOT_DONE)])
def test_they_are_returned_when_that_came_to_its_end(done: bool, verdict: Verdict) -> None:
    """What was lost is in the figures and no failure: after the commit nobody could do anything about it."""
    assert RETURN.verify(asked(given_back=done), Nothing()) is verdict
    assert RETURN.do(asked(give_back={"a.service: table": "lost: x"}), Nothing()) == {"a.service: table": "lost: x"}

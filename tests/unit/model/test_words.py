"""Identifiers, tickets, plans and stored steps: what is accepted, what is refused."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kupgrade.errors import BadInputError
from kupgrade.model.ids import Ticket, UpgradeId
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.plan import BlackoutTerm, Budget
from kupgrade.steps import base
from tests.fakes.drive import plan

ID = "20261121-041503-9f2c1a"


def test_upgrade_ids_sort_by_time() -> None:
    """The later upgrade has the greater ID."""
    texts = ["20261121-041503-000000", "20261121-041504-000000", "20261122-000000-000000"]
    assert sorted(map(UpgradeId, reversed(texts))) == [UpgradeId(text) for text in texts]


@pytest.mark.parametrize(
    "text", ["", "x", ID + "0", ID.upper(), f" {ID}", f"{ID}\n", "../" + ID, ID.replace("-", ""), "\uff12" + ID[1:]]
)
def test_other_texts_are_no_upgrade_id(text: str) -> None:
    """It names a directory and stands on a command line: nothing but its exact form passes."""
    with pytest.raises(BadInputError):
        UpgradeId(text)


@given(st.integers(0, 999999))
def test_a_ticket_is_read_back(epoch: int) -> None:
    """What stands on the command line gives the same ticket."""
    ticket = Ticket(UpgradeId(ID), epoch)
    assert Ticket.parse(str(ticket)) == ticket
    assert ticket.parameter == f"kupgrade.ticket={ID}:{epoch}"


@pytest.mark.parametrize("text", ["", ID, f"{ID}:", f"{ID}:-1", f"{ID}:1234567", f"{ID}:1:2", f"{ID}:1 ", ":1", "x:1"])
def test_other_texts_are_no_ticket(text: str) -> None:
    """Authority is not passed by something that nearly looks like a ticket."""
    with pytest.raises(BadInputError):
        Ticket.parse(text)


def test_the_digest_follows_every_field() -> None:
    """A plan that differs anywhere has another digest."""
    changed = dataclasses.replace(plan(), deadline=plan().deadline + 1)
    assert changed.digest != plan().digest
    assert dataclasses.replace(changed, deadline=plan().deadline).digest == plan().digest


def test_sides_and_steps_go_together() -> None:
    """Each step has the side of its phase."""
    the_plan = plan()
    assert len(the_plan.steps) == len(the_plan.sides)
    kinds = [spec.kind for spec in the_plan.steps]
    assert {side.value for side in the_plan.sides[: kinds.index("cross") + 1]} == {"old"}
    assert {side.value for side in the_plan.sides[kinds.index("cross") + 1 :]} == {"new"}


@pytest.mark.parametrize(("limit", "exceeded"), [(None, False), (2.0, False), (1.9, True)])
def test_a_budget_is_the_sum_against_the_limit(limit: float | None, exceeded: bool) -> None:
    """Exactly the limit is within it."""
    budget = Budget("web", (BlackoutTerm("dump", 0.5, ""), BlackoutTerm("boot", 1.5, "")), limit)
    assert budget.predicted == 2.0
    assert budget.exceeded is exceeded


def test_every_stored_step_says_what_it_does_and_how_it_is_undone() -> None:
    """An operator reads both for every step of the plan."""
    for spec in plan().steps:
        assert spec.describe
        assert spec.undo
        assert base.load(spec).kind == spec.kind


def test_a_step_of_an_unknown_kind_is_refused() -> None:
    """A plan of another release is not half-understood."""
    with pytest.raises(BadInputError, match="unknown kind"):
        base.load(dataclasses.replace(plan().steps[0], kind="dance"))


def test_a_step_with_wrong_parameters_is_refused() -> None:
    """Parameters are read as strictly as everything that is stored."""
    with pytest.raises(BadInputError, match=r"plan\.prepare-store"):
        base.load(dataclasses.replace(plan(hooks=()).steps[0], params={"stor": 1}))


def test_two_steps_cannot_have_one_kind() -> None:
    """A kind lives in journals on disk and means one thing for ever."""
    with pytest.raises(TypeError):
        base.register(type(base.load(plan().steps[0])))
    assert "dump" in base.kinds()


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("6.12.57+deb13-amd64", "7.3.4+deb14-amd64", True),
        ("6.1.0-9-amd64", "6.12.57+deb13-amd64", True),
        ("6.12.57+deb13-amd64", "6.12.57+deb13-cloud-amd64", False),
        ("6.12.57+deb13-amd64", "6.12.57+deb13-rt-amd64", False),
        ("6.17.1-300.fc43.x86_64", "6.18.2-200.fc44.x86_64", True),
        ("6.17.1-300.fc43.x86_64", "6.17.1-300.fc43.x86_64+debug", False),
        ("6.8.0-31-generic", "6.11.0-9-lowlatency", False),
        ("7.0.0-rc1", "7.0.0", True),
    ],
)
def test_a_flavour_is_no_version(one: str, other: str, alike: bool) -> None:
    """Builds of one kind are alike, whatever their numbers; those for another purpose are not."""
    assert (KernelRelease(one).flavour == KernelRelease(other).flavour) is alike

"""Kinds of steps that mean something to a decision."""

from __future__ import annotations

from kupgrade.core.events import step_name
from kupgrade.core.kinds import HELD_BEFORE, REPEATED, makes_default
from kupgrade.steps import registry
from tests.fakes.drive import plan
from tests.fakes.drive_spawn import spawn_plan


def test_steps_that_are_named_exist() -> None:
    """The kinds that are done again after a crash, or before which an upgrade is held, are kinds of the plan."""
    assert set(registry.names()) >= REPEATED | HELD_BEFORE


def test_what_makes_the_new_kernel_the_default_is_told_with_it() -> None:
    """Of the calls of hooks only that of the point commit says so: it is left out where mark-good is."""
    for each in (plan(), spawn_plan()):
        found = [step_name(each, index) for index, spec in enumerate(each.steps) if makes_default(spec)]
        assert found == ["mark-good", "tell-hooks commit"]

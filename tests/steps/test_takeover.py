"""What the new kernel's steps after the commit ask before they are called done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.model.record import Verdict
from kupgrade.steps.base import Nothing
from kupgrade.steps.takeover import AdoptUnits
from tests.fakes.drive import WORKLOADS


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [((), Verdict.DONE), ((0,), Verdict.NOT_DONE), ((1,), Verdict.NOT_DONE), ((0, 1), Verdict.NOT_DONE)],
)
def test_units_are_adopted_when_the_init_system_says_so(wrong: tuple[int, ...], verdict: Verdict) -> None:
    """Each of them, whatever the step itself has seen."""
    names = {WORKLOADS[number].name for number in wrong}
    units = SimpleNamespace(adopted=lambda workload: "main PID 0" if workload.name in names else "")
    host: Any = SimpleNamespace(units=units)
    assert AdoptUnits(WORKLOADS, 1.0).verify(host, Nothing()) is verdict

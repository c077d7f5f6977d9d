"""Whole upgrades to a kernel beside the old one: committed with all the machine has, or as if never tried."""

from __future__ import annotations

import pytest

from tests.vm.test_kexec import run

pytestmark = pytest.mark.vm


def test_a_kernel_that_came_so_is_replaced_the_same_way() -> None:
    """Three generations in one life of the machine, over one connection; each has all that the machine has."""
    judged = run(engine="spawn", new="7.2", further=("7.3",))
    assert [each["outcome"] for each in judged["generations"]] == ["committed"] * 2, judged["findings"]
    assert judged["client"]["sent"] == judged["client"]["answered"] > 500


def test_an_operator_takes_it_back_while_the_new_kernel_waits() -> None:
    """Everything that was given comes back, and the old kernel was never restarted."""
    judged = run(engine="spawn", rollback="ready-standby")
    assert judged["outcome"] == "rolled-back", judged["findings"]


@pytest.mark.parametrize(
    ("fault", "outcomes"),
    [
        ("panic-new-kernel@restore", {"rolled-back"}),
        ("kill-tool@hand-over:quiesced", {"committed", "rolled-back"}),
        ("kill-agent@dump", {"committed"}),
    ],
)
def test_no_fault_costs_the_workload(fault: str, outcomes: set[str]) -> None:
    """Whatever breaks in either kernel, or is not given: same processes, memory, file and connection."""
    judged = run(engine="spawn", fault=fault)
    assert judged["outcome"] in outcomes, judged["findings"]

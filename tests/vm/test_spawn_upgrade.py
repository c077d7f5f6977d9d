"""Whole upgrades to a kernel beside the old one: committed with all the machine has, or as if never tried."""

from __future__ import annotations

import pytest

from tests.vm.test_kexec import run

pytestmark = pytest.mark.vm


def test_the_new_kernel_takes_over_the_workload_and_the_machine() -> None:
    """Under load nothing is lost, and in the end it has all CPUs, the memory and the devices."""
    judged = run(engine="spawn")
    assert judged["outcome"] == "committed", judged["findings"]
    assert judged["client"]["sent"] == judged["client"]["answered"] > 500


def test_a_kernel_that_came_so_is_replaced_the_same_way() -> None:
    """Three generations in one life of the machine, over one connection."""
    judged = run(engine="spawn", new="7.2", further=("7.3",))
    assert [each["outcome"] for each in judged["generations"]] == ["committed"] * 2, judged["findings"]


def test_an_operator_takes_it_back_while_the_new_kernel_waits() -> None:
    """Everything that was given comes back, and the old kernel was never restarted."""
    judged = run(engine="spawn", rollback="ready-standby")
    assert judged["outcome"] == "rolled-back", judged["findings"]


@pytest.mark.parametrize(
    ("fault", "outcomes"),
    [
        ("panic-new-kernel@ready-standby:effect", {"rolled-back"}),
        ("panic-new-kernel@restore", {"rolled-back"}),
        ("hang-new-kernel@dump:effect", {"rolled-back"}),
        ("kill-agent@hand-over", {"rolled-back", "committed"}),
        ("channel-corrupted@dump", {"rolled-back"}),
        ("kill-tool@spawn-kernel:effect", {"committed"}),
        ("panic-old-kernel@after-commit", {"committed"}),
        ("cpu-refuses-offline", {"refused", "rolled-back"}),
        ("memory-refuses-offline", {"refused", "rolled-back"}),
        ("device-refuses", {"refused", "rolled-back"}),
    ],
)
def test_no_fault_costs_the_workload(fault: str, outcomes: set[str]) -> None:
    """Whatever breaks in either kernel, or is not given: same processes, memory, file and connection."""
    judged = run(engine="spawn", fault=fault)
    assert judged["outcome"] in outcomes, judged["findings"]

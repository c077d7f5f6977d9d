"""Whole upgrades to a kernel that starts beside the old one: committed or rolled back, the workload intact."""

from __future__ import annotations

import pytest

from tests.vm.test_kexec import run

pytestmark = pytest.mark.vm


def test_three_generations_follow_each_other_under_one_connection() -> None:
    """6.12 to 7.2 to 7.3 in one machine's life: each old kernel is gone, each new one has the whole machine."""
    judged = run(engine="spawn", new="7.2", further=("7.3",))
    assert judged["outcome"] == "committed", judged["findings"]
    assert judged["client"]["sent"] == judged["client"]["answered"] > 500


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("restore-fails", "rolled-back"),
        ("panic-new-kernel@restore:effect", "rolled-back"),
        ("kill-tool@hand-over:quiesced", "committed"),
    ],
)
def test_a_fault_never_costs_the_workload(fault: str, outcome: str) -> None:
    """Whatever breaks before the commit, the originals go on; CPUs, memory and devices come back."""
    judged = run(engine="spawn", fault=fault)
    assert judged["outcome"] == outcome, judged["findings"]

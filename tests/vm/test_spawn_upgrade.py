"""Whole upgrades to a kernel beside the old one: committed with all the machine has, or as if never tried."""

from __future__ import annotations

import pytest

from tests.vm.test_kexec import lives, run

pytestmark = pytest.mark.vm


@pytest.mark.extended
def test_taken_back_then_made_and_then_replaced_in_the_same_way() -> None:
    """An operator takes the first one back while the new kernel waits; then three generations in one life of the
    machine, over one connection, and each has all that the machine has.
    """
    judged = run(engine="spawn", new="7.2", further=("7.3",), cycles=1)
    found = lives(judged)
    assert [each["outcome"] for each in found] == ["rolled-back", "committed", "committed"], judged["findings"]
    assert judged["client"]["sent"] == judged["client"]["answered"] > 500


def test_no_fault_costs_the_workload() -> None:
    """A panic of the new kernel, then a killed agent: same processes, memory, file and connection."""
    found = lives(run("panic-new-kernel@restore", "kill-agent@dump", engine="spawn"))
    assert [each["outcome"] for each in found] == ["rolled-back", "committed"], [each["findings"] for each in found]


@pytest.mark.extended
def test_an_agent_killed_after_the_commit_has_a_successor() -> None:
    """It is the one that the old kernel talks to: without it that could not leave."""
    judged = run("kill-agent@start-system", engine="spawn")
    assert judged["outcome"] == "committed", judged["findings"]


def test_a_worker_killed_in_the_middle_of_the_handover_costs_nothing() -> None:
    """Devices let go of, the order not given: whoever comes next settles it."""
    judged = run("kill-tool@hand-over:quiesced", engine="spawn")
    assert judged["outcome"] in ("committed", "rolled-back"), judged["findings"]

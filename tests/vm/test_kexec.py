"""Whole kernel upgrades in a virtual host: each ends committed, rolled back or refused with the workload intact."""

from __future__ import annotations

from typing import Any

import pytest

from kupgrade.rehearsal import faults
from kupgrade.rehearsal.options import Options
from kupgrade.rehearsal.scenario import rehearse
from kupgrade.steps import registry
from tests.vm.hosts import say, skipped_without

pytestmark = pytest.mark.vm


def run(*struck: str, **wanted: Any) -> dict[str, Any]:
    """One life of a virtual host; the last upgrade's judgement, with those before it under `generations`."""
    with skipped_without():
        engine = wanted.get("engine", "kexec")
        parsed = tuple(faults.parse(each, registry.names(), engine) for each in struck)
        result = rehearse(Options(faults=parsed, **wanted), say)
    judged = dict(result.judged)
    for each in lives(judged):
        told = each["findings"] or each["reason"]
        print(f"{each['fault']}: gap {each['client']['longest_gap_ms']} ms, {each['outcome']}: {told}")
    return judged


def lives(judged: dict[str, Any]) -> list[dict[str, Any]]:
    """Every upgrade of one life."""
    return [dict(each) for each in judged.get("generations", [judged])]


@pytest.mark.extended
def test_another_pair_of_releases_with_its_images_on_disk_works_as_well() -> None:
    """6.18 to 7.2 with a larger workload that dirties its memory commits with nothing lost."""
    judged = run(old="6.18", new="7.2", memory=128, dirty=1, store="disk")
    assert judged["outcome"] == "committed", judged["findings"]
    assert judged["store"] == "disk"


def test_faults_one_after_the_other_never_cost_the_workload() -> None:
    """Whatever breaks, it goes on: same processes, memory, file and connection; and the next try commits."""
    found = lives(run("restore-fails", "power-cut@dump:effect", "kill-tool@freeze:effect"))
    assert [each["outcome"] for each in found] == ["rolled-back", "rolled-back", "committed"], [
        each["findings"] for each in found
    ]
    last = found[-1]
    assert last["store"] == "pmem"
    assert last["client"]["sent"] == last["client"]["answered"] > 500
    assert last["workloads"][0]["pids_before"] == found[0]["workloads"][0]["pids_before"]


@pytest.mark.extended
@pytest.mark.parametrize(("fault", "outcome"), [("panic-new-kernel", "rolled-back"), ("bad-initrd", "refused")])
def test_a_new_kernel_that_cannot_be_used_changes_nothing(fault: str, outcome: str) -> None:
    """It panics, or its initrd is none: the old kernel has the workload as it was."""
    judged = run(fault)
    assert judged["outcome"] == outcome, judged["findings"]

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


def run(**wanted: Any) -> dict[str, Any]:
    fault = wanted.pop("fault", "")
    with skipped_without():
        engine = wanted.get("engine", "kexec")
        parsed = (faults.parse(fault, registry.names(), engine),) if fault else ()
        result = rehearse(Options(faults=parsed, **wanted), say)
    judged = dict(result.judged)
    print(f"gap {judged['client']['longest_gap_ms']} ms, {judged['outcome']}: {judged['reason']}")
    return judged


@pytest.mark.parametrize("store", ["pmem", "disk"])
def test_an_upgrade_keeps_the_workload_and_its_connection(store: str) -> None:
    """Trixie's kernel to the newest in backports, under load, commits with nothing lost."""
    judged = run(store=store)
    assert judged["outcome"] == "committed", judged["findings"]
    assert judged["store"] == store
    assert judged["client"]["sent"] == judged["client"]["answered"] > 500
    assert judged["workloads"][0]["pids_before"] == judged["workloads"][0]["pids_after"]


def test_another_pair_of_releases_works_as_well() -> None:
    """6.18 to 7.2 with a larger workload that dirties its memory commits with nothing lost."""
    judged = run(old="6.18", new="7.2", memory=128, dirty=1)
    assert judged["outcome"] == "committed", judged["findings"]


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("restore-fails", "rolled-back"),
        ("panic-new-kernel", "rolled-back"),
        ("power-cut@dump:effect", "rolled-back"),
        ("kill-tool@freeze:effect", "committed"),
        ("bad-initrd", "refused"),
    ],
)
def test_a_fault_never_costs_the_workload(fault: str, outcome: str) -> None:
    """Whatever breaks, the workload goes on: same processes, memory, file and connection."""
    judged = run(fault=fault)
    assert judged["outcome"] == outcome, judged["findings"]

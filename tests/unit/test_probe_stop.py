"""What is looked at of a unit that is only to be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.host import stopping
from kupgrade.host.stopping import StopState, state_of
from kupgrade.host.systemd import Systemd
from kupgrade.model.facts import StopFacts
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.workload import Fate
from kupgrade.probe_workload import observe_workload

ENTRY = WorkloadPolicy("agent", unit="agent.service", fate=Fate.STOP)


def unit(name: str, active: str, **values: str) -> StopState:
    return state_of(name, {"LoadState": "loaded", "ActiveState": active, **values})


@pytest.mark.parametrize(
    ("found", "facts", "absent"),
    [
        ((unit("agent.service", "active"),), StopFacts(runs=True), ""),
        (
            (unit("agent.service", "activating"), unit("agent.timer", "active"), unit("b.service", "inactive")),
            StopFacts(runs=True, along=("agent.timer",)),
            "",
        ),
        ((unit("agent.service", "failed"),), StopFacts(runs=False), "agent.service is failed"),
        (
            (unit("agent.service", "inactive", LoadState="not-found"),),
            StopFacts(runs=False, why_not="systemd does not know it"),
            "agent.service is inactive",
        ),
    ],
)
def test_only_its_state_and_company_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: tuple[StopState, ...], facts: StopFacts, absent: str
) -> None:
    """A job that is starting for hours runs; nothing of its processes is looked at."""
    monkeypatch.setattr(stopping, "with_company", lambda units: found if units == ["agent.service"] else ())
    seen = observe_workload(ENTRY, Policy(workloads=(ENTRY,)), Systemd(tmp_path), tmp_path)
    assert (seen.stop, seen.absent, seen.workload) == (facts, absent, None)

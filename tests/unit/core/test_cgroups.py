"""Cgroups of a workload below its own: which are made again, and which forbid the upgrade."""

from __future__ import annotations

import pytest

from kupgrade.core.checks import workload_refusals
from kupgrade.core.obstacles import obstacles
from kupgrade.model.facts import CgroupFacts
from tests.fakes import facts as pf

TWO = (pf.process(), pf.process(pid=501, comm="worker", root=False))


@pytest.mark.parametrize("cgroup", [CgroupFacts("sup", (500, 501)), CgroupFacts("sup/empty")])
def test_ordinary_ones_are_made_again(cgroup: CgroupFacts) -> None:
    """With whom they hold; they are no obstacle."""
    assert obstacles(pf.seen(*TWO, cgroups=(cgroup,))) == ()


@pytest.mark.parametrize(
    ("cgroup", "told"),
    [
        (
            CgroupFacts("w", (501,), ("memory", "pids")),
            "501 (worker) is in the cgroup w, to which memory pids is applied",
        ),
        (CgroupFacts("w", (), ("memory",)), "500 (demo) has the cgroup w, to which memory is applied"),
        (CgroupFacts("w", (501,), kind="threaded"), "501 (worker) is in the cgroup w, whose type is threaded"),
        (CgroupFacts("w", (501,), frozen=True), "501 (worker) is in the cgroup w, which somebody has frozen"),
        (CgroupFacts("/user.slice/x", (501,)), "501 (worker) is in the cgroup /user.slice/x, not in that of its"),
    ],
)
def test_what_could_not_be_made_again_is_refused_by_process(cgroup: CgroupFacts, told: str) -> None:
    """With the reason; an empty one is the main process's affair."""
    (refusal,) = workload_refusals(pf.facts(workloads=(pf.seen(*TWO, cgroups=(cgroup,)),)), pf.policy())
    assert told in refusal.fact

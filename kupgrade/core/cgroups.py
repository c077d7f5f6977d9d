"""Cgroups that a service makes below its own: what of them is not made again after a restore."""

from __future__ import annotations

from collections.abc import Iterator

from kupgrade.model.facts import CgroupFacts, WorkloadFacts
from kupgrade.model.workload import Obstacle


def cgroup_obstacles(facts: WorkloadFacts) -> Iterator[Obstacle]:
    """Told of each process in such a cgroup; of an empty one, of the main process, which would miss it."""
    names = {each.pid: each.comm for each in facts.processes}
    for cgroup in facts.cgroups:
        holders = cgroup.pids or ((facts.workload.root_pid,) if facts.workload else ())
        for why in _reasons(cgroup):
            for pid in holders:
                yield Obstacle(pid, names.get(pid, facts.name), why)


def _reasons(cgroup: CgroupFacts) -> Iterator[str]:
    verb = "is in" if cgroup.pids else "has"
    if cgroup.path.startswith("/"):
        yield f"is in the cgroup {cgroup.path}, not in that of its workload, nor below it"
    if cgroup.controllers:
        applied = " ".join(cgroup.controllers)
        yield f"{verb} the cgroup {cgroup.path}, to which {applied} is applied: limits and accounts there would be lost"
    if cgroup.kind != "domain":
        yield f"{verb} the cgroup {cgroup.path}, whose type is {cgroup.kind}: threads are not put into cgroups again"
    if cgroup.frozen:
        yield f"{verb} the cgroup {cgroup.path}, which somebody has frozen: it would be thawed"

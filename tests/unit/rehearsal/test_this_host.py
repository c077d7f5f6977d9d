"""Who takes part in a rehearsal of this host, and what is not begun at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError, RefusedError
from kupgrade.model.facts import WorkloadFacts
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.workload import Fate, Workload
from kupgrade.rehearsal import this_host


def facts(*workloads: WorkloadFacts) -> Any:
    return SimpleNamespace(workloads=workloads)


def runs(name: str, unit: str, cgroup: str, *pids: int) -> WorkloadFacts:
    workload = Workload(name, unit, cgroup, pids[0], pids)
    return WorkloadFacts(name, unit, workload, anonymous_bytes=100, shared_bytes=20)


def test_a_workload_takes_part_when_it_runs_here_and_a_unit_starts_it() -> None:
    """Its unit is the policy's or the service whose cgroup it is in; the others are named with the reason."""
    policy = replace(
        Policy(),
        workloads=(
            WorkloadPolicy("web", unit="web.service", fate=Fate.RESTART),
            WorkloadPolicy("db", pidfile="/run/db.pid"),
            WorkloadPolicy("bare", pidfile="/run/bare.pid"),
            WorkloadPolicy("idle", unit="idle.service"),
        ),
    )
    found = this_host.taking_part(
        policy,
        facts(
            runs("web", "web.service", "/system.slice/web.service", 700),
            runs("db", "", "/system.slice/db.service", 800),
            runs("bare", "", "/user.slice/session-1.scope", 900),
            WorkloadFacts("idle", "idle.service", None, "it is stopped"),
        ),
    )
    assert [(each.unit, each.why, each.fate) for each in found] == [
        ("web.service", "", Fate.RESTART),
        ("db.service", "", Fate.KEEP),
        ("", "it belongs to no service that could be started", Fate.KEEP),
        ("idle.service", "it is stopped", Fate.KEEP),
    ]
    assert found[0].memory_here == 120


def test_the_copys_processes_begin_below_those_here() -> None:
    """Kernel threads of the next boot have low PIDs; a copy with few processes would be among them."""
    assert this_host._last_pid(facts(runs("a", "", "/", 900, 901), runs("b", "", "/", 5000))) == 850
    assert this_host._last_pid(facts()) == 300


def test_an_engine_that_needs_this_hosts_devices_is_refused() -> None:
    """Nothing is looked at or made then."""
    wish = this_host.Wish(plan=SimpleNamespace(engine="spawn"), facts=facts(), policy=Policy())  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="Only the engine kexec") as caught:
        this_host.rehearse(wish, lambda text: None)
    assert "--engine kexec" in caught.value.remedy


@pytest.mark.parametrize("live", [True, False])
def test_without_anything_to_dump_nothing_is_copied(
    live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan_with: Any
) -> None:
    """When images are wished for that is found out first; without that wish it is nothing of the kind."""

    def copied(*_words: Any) -> Any:
        raise KupgradeError("the copy began")

    monkeypatch.setattr(this_host.own_machine, "require_tools", lambda: "/usr/bin/qemu")
    monkeypatch.setattr(this_host, "_shape", copied)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("22 1 254:1 / / rw - ext4 /dev/vda1 rw\n")
    plan = plan_with(engine="kexec", phases=())
    wish = this_host.Wish(plan=plan, facts=facts(), policy=Policy(), root=tmp_path, live=live)
    with pytest.raises(KupgradeError, match="nothing to dump" if live else "the copy began"):
        this_host.rehearse(wish, lambda text: None)
    assert list((tmp_path / "var/lib/kupgrade/rehearsal").iterdir()) == []

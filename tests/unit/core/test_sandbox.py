"""What of a unit's sandbox is kept, lost, or in the way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kupgrade.core.obstacles import obstacles
from kupgrade.model.facts import SandboxFacts, WorkloadFacts
from kupgrade.model.workload import Carried
from tests.fakes import facts as pf

SANDBOX = SandboxFacts(kinds=("mnt", "uts"))


def told(facts: WorkloadFacts, *, fatal: bool) -> list[str]:
    return [each.what for each in obstacles(facts) if each.fatal is fatal]


def seen(process: dict[str, Any], sandbox: SandboxFacts = SANDBOX, **workload: Any) -> WorkloadFacts:
    return pf.seen(pf.process(**process), sandbox=sandbox, workload=pf.workload(sandbox=sandbox.kinds, **workload))


def test_the_sandbox_of_a_unit_is_no_obstacle() -> None:
    """systemd makes its mounts and its host name again; criu its IPC and time."""
    kinds = ("mnt", "uts", "ipc", "cgroup", "time", "time_for_children")
    assert obstacles(seen({"namespaces": kinds})) == ()


@pytest.mark.parametrize(
    ("process", "sandbox", "words"),
    [
        ({"namespaces": ("mnt",)}, SandboxFacts(), "own mnt namespace"),
        ({"namespaces": ("net",)}, SANDBOX, "own net namespace"),
        ({"namespaces": ("pid_for_children",)}, SANDBOX, "own pid namespace"),
        ({"apart": ("mnt",)}, SANDBOX, "another mnt namespace than its main process"),
        ({"namespaces": ("user",), "same_ids": False}, SANDBOX, "other IDs in its user namespace"),
        ({"namespaces": ("user",), "powerless": False}, SANDBOX, "capabilities"),
        ({"volatile_mappings": ("/run/x",)}, SANDBOX, "maps /run/x"),
        ({}, dataclasses.replace(SANDBOX, own_root="/srv/root"), "another root directory (/srv/root)"),
        ({}, dataclasses.replace(SANDBOX, dynamic_user=True), "DynamicUser="),
        ({}, dataclasses.replace(SANDBOX, ipc_objects=("sem 3",)), "semaphores or message queues (sem 3)"),
    ],
)
def test_what_cannot_be_kept_is_named(process: dict[str, Any], sandbox: SandboxFacts, words: str) -> None:
    """One reason each, of the process that has it."""
    (why,) = told(seen(process, sandbox), fatal=True)
    assert words in why


@pytest.mark.parametrize(
    ("sandbox", "workload", "words"),
    [
        (SANDBOX, {"user_namespace": True}, "PrivateUsers="),
        (dataclasses.replace(SANDBOX, denies_write_execute=True), {}, "MemoryDenyWriteExecute="),
        (SANDBOX, {"shared_memory": True}, "System V shared memory"),
    ],
)
def test_what_is_lost_is_told_and_forbids_nothing(sandbox: SandboxFacts, workload: dict[str, Any], words: str) -> None:
    """Until the service's next start."""
    found = seen({"namespaces": ("mnt", "user")}, sandbox, **workload)
    assert told(found, fatal=True) == []
    (lost,) = told(found, fatal=False)
    assert words in lost and "until its next start" in lost


@pytest.mark.parametrize(
    ("sandbox", "workload", "words"),
    [
        (SANDBOX, {"sandbox": ("mnt",)}, ""),
        (SandboxFacts(), {"user_namespace": True, "shared_memory": True}, ""),
        (SandboxFacts(carried_bytes=4), {"carried": (Carried("/run/x.pid"),)}, ""),
        (SandboxFacts(unmade=("overlay on /opt",)), {"sandbox": ("mnt",)}, "overlay on /opt"),
    ],
)
def test_beside_an_old_kernel_only_what_systemd_alone_makes_is_refused(
    sandbox: SandboxFacts, workload: dict[str, Any], words: str
) -> None:
    """With the other engine as the remedy; a workload that is restarted anyway is no matter."""
    from kupgrade.core import spawn_checks

    found = pf.facts(workloads=(pf.seen(workload=pf.workload(**workload), sandbox=sandbox),), spawn=pf.spawn())
    refused = [each for each in spawn_checks.refusals(found, pf.policy()) if "before systemd" in each.rule]
    assert [words in each.fact and "kexec" in each.remedy for each in refused] == ([True] if words else [])

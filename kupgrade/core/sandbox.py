"""What of a unit's sandbox can be kept, what is lost on the way, and what forbids it."""

from __future__ import annotations

from collections.abc import Collection

from kupgrade.model.facts import ProcessFacts, SandboxFacts, WorkloadFacts
from kupgrade.model.workload import Obstacle


def of_namespaces(process: ProcessFacts, sandbox: SandboxFacts, kept: Collection[str]) -> list[str]:
    """Why the namespaces of one process stand in the way. Those of its children's kind follow those of its own."""
    found = []
    for kind in process.namespaces:
        own = kind.removesuffix("_for_children")
        if own in kept or kind in kept:
            continue
        if own == "user":
            found += _of_user(process)
        elif own not in sandbox.kinds:
            found.append(f"lives in its own {own} namespace, which kupgrade does not carry over")
    found += [
        f"lives in another {kind} namespace than its main process, and a unit's start makes one"
        for kind in process.apart
        if kind in sandbox.kinds
    ]
    return found


def _of_user(process: ProcessFacts) -> list[str]:
    """It is restored into the host's user namespace: what it may do there must not be more, nor its user another."""
    found = []
    if not process.same_ids:
        found.append("has other IDs in its user namespace than outside of it")
    if not process.powerless:
        found.append(
            "lives in its own user namespace and has capabilities, or a way to them, that it would have on the host"
        )
    return found


def sandbox_obstacles(facts: WorkloadFacts) -> list[Obstacle]:
    """Of the workload as a whole; told of its main process."""
    workload, sandbox = facts.workload, facts.sandbox
    if workload is None:
        return []
    fatal: list[str] = []
    lost: list[str] = []
    if sandbox.own_root:
        fatal.append(
            f"has another root directory ({sandbox.own_root}), in which its unit's restore could not be started"
        )
    if sandbox.dynamic_user:
        fatal.append("runs as a user that is made at its start (DynamicUser=), which may be another one next time")
    if sandbox.ipc_objects:
        named = ", ".join(sandbox.ipc_objects[:4])
        fatal.append(
            f"runs as a user that has System V semaphores or message queues ({named}): they are not carried over"
        )
    if workload.user_namespace:
        lost.append(
            "leaves its user namespace (PrivateUsers=) until its next start; its IDs and lack of capabilities stay"
        )
    if sandbox.denies_write_execute:
        lost.append("may make writable memory executable (MemoryDenyWriteExecute=) until its next start")
    if workload.shared_memory:
        lost.append("has its System V shared memory in an IPC namespace of its own until its next start")
    made = [(what, True) for what in fatal] + [(what, False) for what in lost]
    return [Obstacle(workload.root_pid, facts.name, what, is_fatal) for what, is_fatal in made]

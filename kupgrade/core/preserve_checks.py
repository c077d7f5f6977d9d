"""Why descriptor stores that the policy names cannot come through: the services, this kernel, the target. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kupgrade.core.live_update import NEXT_KERNEL, handover_refusals, target_handover_refusals
from kupgrade.core.preserved import ONLY_MEMORY, kept_units, preserved, preserved_bytes, strict_units
from kupgrade.model.descriptors import DescriptorStore
from kupgrade.model.facts import Facts
from kupgrade.model.plan import Refusal
from kupgrade.model.policy import Policy
from kupgrade.model.target import Target

_KEPT_WHEN_STOPPED = "yes"
_NAMED = "Or take it out of the policy's preserve"


def preserve_refusals(facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
    """What this host lacks, whatever the target."""
    if not policy.preserve:
        return ()
    known = {store.unit: store for store in facts.descriptor_stores}
    found: list[Refusal] = []
    for each in policy.preserve:
        store = known.get(each.unit)
        if store is None:
            why = facts.unknown.get(f"descriptor store of {each.unit}", "it was not read")
            found.append(Refusal(f"the descriptor store of {each.unit} is known", why, _NAMED))
        elif not store.session:
            found += _of_store(facts, policy, store)
    if not preserved(facts, policy):
        return tuple(found)
    return (*found, *handover_refusals(facts, policy), *_in_time(facts), *_memory(facts, policy))


def preserve_target_refusals(facts: Facts, policy: Policy, target: Target) -> tuple[Refusal, ...]:
    """What the target lacks."""
    return target_handover_refusals(target) if preserved(facts, policy) else ()


def no_preserve(policy: Policy, engine: str) -> tuple[Refusal, ...]:
    """Of an engine that starts the new kernel in another way than by kexec."""
    if not policy.preserve:
        return ()
    unit = policy.preserve[0].unit
    fact = f"the policy preserves that of {unit}, and the {engine} engine carries none"
    return (Refusal("descriptor stores come along", fact, "Use the kexec engine, or take preserve out of the policy"),)


def _of_store(facts: Facts, policy: Policy, store: DescriptorStore) -> Iterator[Refusal]:
    unit = store.unit
    rule = f"the descriptor store of {unit} can be preserved"
    if not store.loaded:
        yield Refusal(rule, f"systemd does not know {unit}", f"Install the service. {_NAMED}")
        return
    if not store.limit:
        yield Refusal(rule, f"{unit} has none", f"Set FileDescriptorStoreMax= in it. {_NAMED}")
    elif store.mode != _KEPT_WHEN_STOPPED:
        fact = f"{unit} has FileDescriptorStorePreserve={store.mode}, so its store ends when it is stopped"
        yield Refusal(rule, fact, f"Set FileDescriptorStorePreserve=yes in it. {_NAMED}")
    elif not store.wanted:
        fact = f"nothing pulls {unit} in, so systemd forgets it and its store when it is stopped"
        yield Refusal(rule, fact, f"Enable it, or its socket or timer. {_NAMED}")
    if unit in kept_units(policy):
        fact = f"{unit} is a workload that is kept, so it is not started anew and would never ask for it"
        yield Refusal(rule, fact, f"Give the workload fate = restart. {_NAMED}")
    elif store.active and unit in facts.needed_services:
        fact = f"{unit} is needed by a kept workload, so it cannot be stopped before"
        yield Refusal(rule, fact, f"Keep it as a workload. {_NAMED}")
    lost = [each for each in store.descriptors if not each.kept]
    if lost and unit in strict_units(policy):
        what = ", ".join(f"{each.name} ({each.kind})" for each in lost)
        yield Refusal(f"{unit} loses no stored descriptor", f"{what}: {ONLY_MEMORY}", 'Set losses = "tell"')


def _in_time(facts: Facts) -> Iterator[Refusal]:
    """They are returned by the agent, while no service has been started yet."""
    if not facts.early_agent:
        yield Refusal(
            "descriptors are returned before any service starts",
            "state, images or workloads lie on another file system than the root's, or a profile confines them, so the"
            " agent of the next boot starts beside the services",
            "Keep them on the root file system, or take preserve out of the policy",
        )


def _memory(facts: Facts, policy: Policy) -> Iterator[Refusal]:
    scratch = (facts.kho.scratch_bytes if facts.kho is not None else 0) or 0
    stored = preserved_bytes(facts, policy)
    workloads = sum(each.anonymous_bytes + each.shared_bytes for each in facts.workloads)
    left = facts.memory_bytes - scratch - stored
    if facts.memory_bytes and left < workloads + NEXT_KERNEL:
        fact = f"{stored >> 20} MiB are stored, {max(0, left) >> 20} MiB would be left for the new kernel and all else"
        yield Refusal("memory for what is preserved", fact, "Take preserve out of the policy for large stores")

"""Which descriptor stores come through an upgrade, what of them does, and what is lost. Pure."""

from __future__ import annotations

from kupgrade.model.descriptors import DescriptorStore, StoreLosses
from kupgrade.model.facts import Facts
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import Loss
from kupgrade.model.policy import Policy
from kupgrade.model.workload import Fate

ONLY_MEMORY = "only memory files (memfds) can be handed to the next kernel"


def session_of(upgrade: UpgradeId) -> str:
    """The name of the session that carries them."""
    return f"kupgrade-fds-{upgrade}"


def kept_units(policy: Policy) -> tuple[str, ...]:
    """Units of workloads that are kept, and so are none to be restarted."""
    return tuple(entry.unit for entry in policy.workloads if entry.fate is Fate.KEEP and entry.unit)


def named(facts: Facts, policy: Policy) -> tuple[DescriptorStore, ...]:
    """The stores of the policy's `preserve`, as far as they could be read."""
    found = {store.unit: store for store in facts.descriptor_stores}
    return tuple(found[each.unit] for each in policy.preserve if each.unit in found)


def preserved(facts: Facts, policy: Policy) -> tuple[DescriptorStore, ...]:
    """Of these, those that kupgrade has to care for: with a session of its own systemd does."""
    return tuple(store for store in named(facts, policy) if not store.session)


def preserved_bytes(facts: Facts, policy: Policy) -> int:
    """What stays in memory for them over the crossing."""
    return sum(each.size for store in preserved(facts, policy) for each in store.descriptors if each.kept)


def expected(stores: tuple[DescriptorStore, ...]) -> tuple[str, ...]:
    """What comes through, as the journal calls it."""
    return tuple(f"{store.unit}: {each.name}" for store in stores for each in store.descriptors if each.kept)


def strict_units(policy: Policy) -> tuple[str, ...]:
    """Services of which no stored descriptor may be lost."""
    return tuple(each.unit for each in policy.preserve if each.losses is StoreLosses.REFUSE)


def store_losses(facts: Facts, policy: Policy) -> tuple[Loss, ...]:
    """Stored descriptors that do not come through, by name."""
    found = [
        Loss(f"{store.unit}: stored descriptor {each.name}", f"{each.kind}: {ONLY_MEMORY}")
        for store in preserved(facts, policy)
        for each in store.descriptors
        if not each.kept
    ]
    kept = kept_units(policy)
    why = "systemd holds them, not the processes that are kept; their store is empty afterwards"
    for store in facts.descriptor_stores:
        if store.unit in kept and store.held:
            names = ", ".join(each.name for each in store.descriptors) or str(store.held)
            found.append(Loss(f"{store.unit}: stored descriptors {names}", why))
    return tuple(found)


def store_notes(facts: Facts, policy: Policy) -> tuple[str, ...]:
    """What comes through, with its size, and what is left to others."""
    found = []
    for store in named(facts, policy):
        if store.session:
            found.append(f"{store.unit} has LUOSession={store.session}: systemd itself carries its descriptors")
            continue
        kept = [f"{each.name} ({each.kind}, {each.size} bytes)" for each in store.descriptors if each.kept]
        told = f"preserves {', '.join(kept)}" if kept else "nothing in its descriptor store can be preserved now"
        found.append(f"{store.unit}: {told}")
    return tuple(found)

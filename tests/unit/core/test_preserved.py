"""Descriptor stores in a plan: what comes through, what is lost by name, and what forbids the upgrade."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kupgrade.core import planner
from kupgrade.core.chronicle import entry
from kupgrade.core.explain_more import more_json, more_text
from kupgrade.core.preserve_checks import no_preserve, preserve_refusals, preserve_target_refusals
from kupgrade.core.preserved import preserved_bytes, store_losses, store_notes
from kupgrade.engines.base import Order
from kupgrade.engines.kexec import KexecEngine
from kupgrade.engines.spawn import SpawnEngine
from kupgrade.model.descriptors import HOLD, RETURN, DescriptorStore, PreservePolicy, StoredDescriptor, StoreLosses
from kupgrade.model.facts import Facts
from kupgrade.model.kho import KhoFacts, KhoWords
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.record import Record, RecordKind
from kupgrade.model.workload import Fate, StoreKind
from tests.fakes import facts as fake
from tests.fakes.drive import UPGRADE, plan, planned

UNIT = "cron.service"
MEMORY, EVENT = StoredDescriptor("table", "memfd", 3 << 20), StoredDescriptor("wake", "eventfd")
KHO = KhoFacts(True, True, True, KhoWords("on", "on"))


def store(**changes: Any) -> DescriptorStore:
    base = DescriptorStore(UNIT, True, True, 8, "yes", held=2, descriptors=(MEMORY, EVENT))
    return dataclasses.replace(base, **changes)


def facts(*stores: DescriptorStore, **changes: Any) -> Facts:
    line = "root=/dev/vda kho=on liveupdate=on"
    return fake.facts(**{"kho": KHO, "cmdline": line, "descriptor_stores": stores or (store(),), **changes})


def policy(losses: StoreLosses = StoreLosses.TELL, **changes: Any) -> Policy:
    return fake.policy(**{"preserve": (PreservePolicy(UNIT, losses),), **changes})


def test_a_host_with_all_of_it_can() -> None:
    """Nothing is refused where nothing is wrong, and nothing where the policy preserves nothing."""
    assert preserve_refusals(facts(), policy()) == ()
    assert preserve_refusals(fake.facts(), fake.policy()) == ()
    assert KexecEngine().refusals(facts(), policy()) == ()


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (facts(store(loaded=False)), "systemd does not know cron.service"),
        (facts(store(limit=0)), "cron.service has none"),
        (facts(store(mode="restart")), "FileDescriptorStorePreserve=restart"),
        (facts(store(wanted=False)), "nothing pulls cron.service in"),
        (facts(needed_services=(UNIT,)), "needed by a kept workload"),
        (facts(kho=None), "lacks kho=on liveupdate=on"),
        (facts(early_agent=False), "starts beside the services"),
        (facts(store(descriptors=(dataclasses.replace(MEMORY, size=2 << 30),))), "2048 MiB are stored"),
        (facts(store(unit="x.service"), unknown={f"descriptor store of {UNIT}": "no answer"}), "no answer"),
    ],
)
def test_what_is_missing_is_refused_by_name(found: Facts, told: str) -> None:
    """One reason each, with a remedy."""
    (refusal,) = preserve_refusals(found, policy())
    assert told in refusal.fact and refusal.remedy


@pytest.mark.parametrize("word", ["init=/sbin/other", "systemd.unit=rescue.target"])
def test_a_host_that_starts_something_else_first_is_refused(word: str) -> None:
    """Its services would be started before their descriptors are back."""
    found = facts(cmdline=f"root=/dev/vda {word} kho=on liveupdate=on")
    (refusal,) = KexecEngine().refusals(found, policy())
    assert word.partition("=")[0] in refusal.fact
    assert KexecEngine().refusals(found, fake.policy()) == ()


def test_a_kept_workload_has_no_store_to_preserve() -> None:
    """It is not started anew; what systemd holds for it is told as lost, named in the policy or not."""
    kept = facts(store(unit="demo.service"))
    (refusal,) = preserve_refusals(kept, policy(preserve=(PreservePolicy("demo.service"),)))
    assert "is a workload that is kept" in refusal.fact
    assert [loss.what for loss in store_losses(kept, fake.policy())] == ["demo.service: stored descriptors table, wake"]
    restarted = (WorkloadPolicy("demo", unit="demo.service", fate=Fate.RESTART),)
    assert not store_losses(kept, fake.policy(workloads=restarted))


def test_losses_are_told_or_refused() -> None:
    """What no kernel hands over stands in the plan by name and kind, or forbids it."""
    assert [(loss.what, loss.why.split(":")[0]) for loss in store_losses(facts(), policy())] == [
        ("cron.service: stored descriptor wake", "eventfd")
    ]
    (refusal,) = preserve_refusals(facts(), policy(StoreLosses.REFUSE))
    assert "wake (eventfd)" in refusal.fact
    assert not preserve_refusals(facts(store(descriptors=(MEMORY,))), policy(StoreLosses.REFUSE))


def test_what_systemd_carries_itself_is_left_alone() -> None:
    """LUOSession=: no step, no loss, no demand on this kernel; the plan says who does it."""
    found = facts(store(session="cron", mode="no"), kho=None)
    assert preserve_refusals(found, policy()) == ()
    assert store_losses(found, policy()) == () and preserved_bytes(found, policy()) == 0
    assert "systemd itself carries" in store_notes(found, policy())[0]
    assert "hold-descriptors" not in kinds(found, policy())


def test_what_comes_through_is_told_with_its_size() -> None:
    """By name and kind; a store without any memory is told, too."""
    assert store_notes(facts(), policy()) == ("cron.service: preserves table (memfd, 3145728 bytes)",)
    assert "nothing" in store_notes(facts(store(descriptors=(EVENT,))), policy())[0]


def test_a_target_that_does_not_understand_is_refused() -> None:
    """As for images in memory, without another store for a way out."""
    target = fake.target(handover=("luo-v5 here, luo-v6 there",))
    (refusal,) = preserve_target_refusals(facts(), policy(), target)
    assert "luo-v6" in refusal.fact and "store" not in refusal.remedy
    assert not preserve_target_refusals(facts(), fake.policy(), target)


def test_the_spawn_engine_carries_none() -> None:
    """It says so, and names the engine that does."""
    (refusal,) = no_preserve(policy(), "spawn")
    assert UNIT in refusal.fact and "kexec" in refusal.remedy
    rules = [each.rule for each in SpawnEngine().refusals(facts(), policy())]
    assert refusal.rule in rules


def kinds(found: Facts, rules: Policy) -> list[str]:
    kept = planner.kept(found, rules)
    where = planner.store_for(UPGRADE, rules, StoreKind.DISK)
    order = Order(UPGRADE, found, rules, fake.target(), where, kept, planner.to_stop(found, rules), 1500, "/staged")
    return [step.kind for phase in KexecEngine().phases(order) for step in phase.steps]


def test_the_order_of_its_steps_is_safe() -> None:
    """Held when nothing changes them any more; returned after the workloads serve, before anything else is started."""
    found = kinds(facts(), policy(soak=60.0))
    for first, second in [
        ("stop-services", "hold-descriptors"),
        ("hold-descriptors", "freeze"),
        ("unlock-network", "return-descriptors"),
        ("return-descriptors", "soak"),
    ]:
        assert found.index(first) < found.index(second), (first, second)
    assert not {"hold-descriptors", "return-descriptors"} & set(kinds(facts(), fake.policy()))


def test_a_preserved_service_is_stopped_whatever_else_is_kept_running() -> None:
    """What is in its store must not change any more."""
    assert planner.to_stop(facts(), policy(stop_services=False)) == (UNIT,)
    assert planner.to_stop(facts(), policy(keep_services=("*",))) == (UNIT,)
    assert UNIT not in planner.to_stop(facts(needed_services=(UNIT,)), policy())


def test_the_preflight_says_what_comes_through_and_what_does_not() -> None:
    """In text and JSON; nothing where there is nothing to tell."""
    text = "\n".join(more_text(facts(), policy(), {}))
    assert "preserves table" in text and "stored descriptor wake is lost: eventfd" in text
    told = more_json(facts(), policy(), {})["descriptor_stores"]
    assert told["stores"][0]["unit"] == UNIT and len(told["losses"]) == 1
    assert not list(more_text(fake.facts(), fake.policy(), {}))


TABLE, WAKE = f"{UNIT}: table", f"{UNIT}: wake"
HELD = (RecordKind.DONE, HOLD, {TABLE: "5 bytes", WAKE: "lost: eventfd"})


@pytest.mark.parametrize(
    ("events", "lost"),
    [
        ((HELD,), {}),
        ((HELD, (RecordKind.UNDONE, HOLD, {"seconds": 0.1})), {}),
        ((HELD, (RecordKind.UNDONE, HOLD, {TABLE: "returned"})), {WAKE: "eventfd"}),
        ((HELD, (RecordKind.DONE, RETURN, {TABLE: "returned"})), {WAKE: "eventfd"}),
        ((HELD, (RecordKind.DONE, RETURN, {TABLE: "lost: no session"})), {WAKE: "eventfd", TABLE: "no session"}),
    ],
)
def test_the_history_names_what_a_crossing_cost(
    events: tuple[tuple[RecordKind, str, dict[str, object]], ...], lost: dict[str, str]
) -> None:
    """Not what was only held: as long as nothing crossed, the stores have all of it."""
    made = plan(StoreKind.LUO)
    kinds = [spec.kind for spec in made.steps]
    records = [planned(StoreKind.LUO)]
    for kind, step, data in events:
        number = len(records) + 1
        records.append(Record(number, kind, made.boot_id, 1, 0.0, 0.0, kinds.index(step), data))
    assert entry(records).lost == lost

"""Whether images can stay in memory: whatever a kernel, a target or the memory lacks is named with its remedy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kupgrade.core.live_update import live_update_refusals, turned_off
from kupgrade.core.planner import ONLY_BY_KEXEC, assemble, choose_store, store_for
from kupgrade.engines.base import Order
from kupgrade.engines.kexec import back_cmdline, crossing_cmdline
from kupgrade.model.kho import KhoAbi, KhoFacts, KhoWords, differs
from kupgrade.model.machine import MemoryRange
from kupgrade.model.policy import EngineOptions, KexecOptions, Policy
from kupgrade.model.workload import StoreKind
from tests.fakes import facts as fake
from tests.fakes.drive import UPGRADE, plan

MIB = 1 << 20
ON = KhoWords("on", "on")


def kho(**changes: Any) -> KhoFacts:
    base = KhoFacts(True, True, True, ON, scratch=(MemoryRange(0, 400 * MIB),))
    return dataclasses.replace(base, **changes)


def refused(
    found: KhoFacts | None,
    cmdline: str = "kho=on liveupdate=on",
    append: str = "",
    memory: int = 64 * MIB,
    **changes: Any,
) -> list[str]:
    facts = fake.facts(kho=found, cmdline=cmdline, **changes)
    policy: Policy = fake.policy(engine=EngineOptions(kexec=KexecOptions(cmdline_append=append)))
    refusals = live_update_refusals(facts, policy, fake.target(handover=()), memory, int(memory * 1.5))
    assert all(each.remedy for each in refusals)
    return [each.fact for each in refusals]


def test_a_host_with_all_of_it_can() -> None:
    """A device, both words for the next kernel too, room, and a target that understands."""
    assert refused(kho()) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "lacks kho=on liveupdate=on"),
        (kho(device_there=False, words=KhoWords()), "lacks kho=on liveupdate=on"),
        (kho(device_there=False, words=KhoWords("on", None)), "lacks liveupdate=on"),
        (kho(device_there=False, words=KhoWords("off", "on")), "lacks kho=on"),
        (kho(device_there=False, words=KhoWords("on", "on", None, "256M")), "beside crashkernel=256M"),
        (kho(device_there=False), "without CONFIG_LIVEUPDATE"),
    ],
)
def test_a_kernel_without_the_device_is_told_what_it_lacks(found: KhoFacts | None, told: str) -> None:
    """The parameter that is missing, or what may have kept the kernel from it although both are given."""
    (fact,) = refused(found)
    assert told in fact


@pytest.mark.parametrize("append", ["kho=off", "liveupdate=0", "kho=n"])
def test_words_that_turn_it_off_in_the_new_kernel_are_refused(append: str) -> None:
    """The last word on a command line counts, and the policy's come last."""
    (fact,) = refused(kho(), append=append)
    assert append in fact


def test_a_target_that_does_not_understand_is_refused_by_name() -> None:
    """What differs stands in the reason: nothing is started to find out."""
    facts = fake.facts(kho=kho(), cmdline="kho=on liveupdate=on")
    old, new = KhoAbi("kho-v4", "luo-v5", "memfd-v2", True), KhoAbi("kho-v4", "luo-v6", "memfd-v2", True)
    target = fake.target(handover=differs(old, new))
    (refusal,) = live_update_refusals(facts, fake.policy(), target, 64 * MIB, 96 * MIB)
    assert "luo-v5" in refusal.fact and "luo-v6" in refusal.fact
    assert not live_update_refusals(facts, fake.policy(), None, 64 * MIB, 96 * MIB)


def test_memory_must_hold_images_now_and_restored_workloads_then() -> None:
    """Too little available now, or after the crossing beside scratch and images: told with figures."""
    stores = dataclasses.replace(fake.facts().stores, memory_available=200 * MIB)
    (fact,) = refused(kho(), stores=stores)
    assert fact == "200 MiB available, and the images may need 96 MiB"
    (fact,) = refused(kho(), memory=800 * MIB, memory_bytes=2048 * MIB)
    assert "448 MiB would be left for the new kernel and 800 MiB of workloads" in fact


@pytest.mark.parametrize(("word", "off"), [("on", False), ("y", False), ("1", False), ("", True), (None, True),
                                           ("off", True), ("0", True), ("N", True)])  # fmt: skip
def test_parameters_are_read_as_the_kernel_reads_them(word: str | None, off: bool) -> None:
    """kstrtobool(): the first letters count; a word that is not there turns nothing on."""
    assert turned_off(word) is off


def test_memory_is_preferred_and_passed_over_with_its_reason() -> None:
    """Where it cannot be, the next store is taken, and the plan says why."""
    order = (StoreKind.LUO, StoreKind.PMEM)
    facts = fake.facts(kho=kho(), cmdline="kho=on liveupdate=on")
    assert choose_store(facts, fake.policy(), order, fake.target(handover=()))[0] is StoreKind.LUO
    kind, _, notes = choose_store(fake.facts(), fake.policy(), order, fake.target(handover=()))
    assert kind is StoreKind.PMEM and "store luo passed over" in notes[0]


def test_the_plan_says_what_images_in_memory_do_not_outlive() -> None:
    """Only where they are: a store that outlives a restart has nothing to warn of."""
    assert ONLY_BY_KEXEC in plan(StoreKind.LUO).warnings
    assert ONLY_BY_KEXEC not in plan().warnings


def test_the_plan_preserves_between_dump_and_crossing_only_what_is_in_memory() -> None:
    """And the crossing asks for it; other stores know nothing of either."""
    kinds = [spec.kind for spec in plan(StoreKind.LUO).steps if spec.kind != "call-hooks"]
    assert kinds[kinds.index("dump") :][:3] == ["dump", "preserve-images", "cross"]
    assert "preserve-images" not in [spec.kind for spec in plan().steps]


def test_where_there_is_a_choice_the_plan_tells_what_was_measured() -> None:
    """Predicted seconds of each store that could be taken; a disk that could not be measured is unknown, not slow."""
    facts = fake.facts(kho=kho(), cmdline="kho=on liveupdate=on", checksum_rate=64 * MIB * 1.05 / 0.5)
    order = (StoreKind.LUO, StoreKind.PMEM, StoreKind.DISK)
    (note,) = choose_store(facts, fake.policy(), order, fake.target(handover=()))[2]
    assert note.endswith("luo 0.50 s, pmem 0.50 s, disk unknown")
    slow = dataclasses.replace(facts, stores=dataclasses.replace(facts.stores, disk_rate=64 * MIB * 1.05 / 8))
    (note,) = choose_store(slow, fake.policy(), order, fake.target(handover=()))[2]
    assert note.endswith("disk 8.00 s")
    assert choose_store(facts, fake.policy(), (StoreKind.LUO,), fake.target(handover=()))[2] == ()


def test_a_target_that_would_misread_what_is_handed_over_does_not_look() -> None:
    """Another version of the format would make it panic, on any store; where all is the same nothing is said."""
    differing = fake.target(handover=("live update: the old kernel writes luo-v5, the new one reads luo-v6",))
    for found, target, off in (
        (kho(), differing, True),
        (kho(), fake.target(handover=()), False),
        (kho(device_there=False), differing, False),
        (None, differing, False),
    ):
        facts = fake.facts(kho=found, cmdline="kho=on liveupdate=on")
        store = store_for(UPGRADE, fake.policy(), StoreKind.DISK)
        order = Order(UPGRADE, facts, fake.policy(), target, store, (), (), 1000, "/var/lib/kupgrade/s")
        assert ("kho=off" in crossing_cmdline(order)) is off
        assert "kho=on" in back_cmdline(order)
        made = assemble(UPGRADE, 1.0, facts, fake.policy(), target, "kexec", store, (), ())
        assert any("kho=off" in each and "luo-v6" in each for each in made.warnings) is off

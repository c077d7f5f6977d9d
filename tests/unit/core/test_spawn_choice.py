"""What a new kernel is given: CPUs, memory, devices, modules."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.core import box, spawn_choice
from kupgrade.core.spawn_choice import SpawnChoice, choose
from kupgrade.model.machine import CpuSet
from kupgrade.model.pci import DomainType
from kupgrade.model.policy import SpawnOptions
from tests.fakes import facts as fake
from tests.fakes.facts import PORT_BUS, PORT_DISK, PORT_NIC

MIB = 1 << 20


def chosen(spawn: dict[str, Any] | None = None, **options: Any) -> SpawnChoice:
    found = choose(fake.facts(spawn=fake.spawn(**(spawn or {}))), fake.spawn_policy(**options))
    assert isinstance(found, SpawnChoice), found
    return found


def refused(spawn: dict[str, Any] | None = None, **options: Any) -> list[str]:
    found = choose(fake.facts(spawn=fake.spawn(**(spawn or {}))), fake.spawn_policy(**options))
    assert isinstance(found, tuple)
    assert all(each.fact and each.remedy for each in found)
    return [each.rule for each in found]


def test_disk_and_interface_go_in_the_blackout_and_the_rest_later() -> None:
    """The disk of / and the NIC with addresses are handed over first; all modules of all of them are named."""
    found = chosen()
    assert found.handed == (PORT_DISK, PORT_NIC) and found.later == (PORT_BUS,)
    assert found.modules == ("ext4", "virtio_blk", "virtio_console", "virtio_net", "virtio_pci")
    assert (found.root_uuid, found.root_fstype, found.root_options) == ("0f0f", "ext4", "rw,relatime")


def test_one_port_for_both_is_handed_over_once() -> None:
    """A disk and a NIC of one device are one port."""
    nics = (fake.Nic("eth0", "", PORT_DISK),)
    assert chosen({"nics": nics}).handed == (PORT_DISK,)


@pytest.mark.parametrize(
    ("topology", "spawn", "cores", "cpus"),
    [
        (fake.topology(2), {}, 0, (1,)),
        (fake.topology(3), {}, 0, (2,)),
        (fake.topology(4), {}, 0, (3, 2)),
        (fake.topology(4), {}, 1, (3,)),
        (fake.topology(4), {}, 3, (3, 2, 1)),
        (fake.topology(4, threads=2), {}, 0, (6, 7, 4, 5)),
        (fake.topology(4, threads=2, offline=(1, 3, 5, 7)), {}, 0, (6, 4)),
        (fake.topology(4), {"isolated": CpuSet.of(3)}, 2, (2, 3)),
        (fake.topology(4), {"bsp": 3}, 0, (2, 1)),
    ],
)
def test_half_of_the_cores_unless_told(topology: Any, spawn: Any, cores: int, cpus: tuple[int, ...]) -> None:
    """Whole cores from the top, the boot-strap processor's never."""
    assert chosen({"topology": topology, **spawn}, cores=cores).cpus == cpus


@pytest.mark.parametrize(
    ("anonymous", "memory", "window"),
    [
        (0, 512 + 128, 64),
        (64, 640 + 128, 64),  # 416 + 166.4, rounded up, and a section for the window
        (1024, 3200 + 128, 64),
    ],
)
def test_memory_grows_with_the_workloads(anonymous: int, memory: int, window: int) -> None:
    """Images lie in it and, restored, as processes; through the window they come in batches."""
    facts = fake.facts(workloads=(fake.seen(anonymous_bytes=anonymous * MIB),), spawn=fake.spawn())
    assert spawn_choice.window_size(SpawnOptions()) // MIB == window
    assert spawn_choice.memory_size(facts, SpawnOptions()) // MIB == memory


@given(st.integers(0, 64 << 30), st.integers(0, 1 << 30), st.sampled_from((0, 128 * MIB, 2 << 30)))
def test_memory_always_holds_a_box(anonymous: int, window: int, block: int) -> None:
    """Whatever the workloads: whole blocks, an even window, and room for kernel, initramfs and what starts them."""
    facts = fake.facts(workloads=(fake.seen(anonymous_bytes=anonymous),), spawn=fake.spawn(block_size=block))
    options = SpawnOptions(window=window)
    memory, share = spawn_choice.memory_size(facts, options), spawn_choice.window_size(options)
    assert memory % max(block, 128 * MIB) == 0 and share % (2 * MIB) == 0 and share >= max(window, 8 * MIB)
    needs = box.BoxNeeds(init_size=64 * MIB, initrd=64 * MIB, root_image=0, window=share)
    assert box.needed_size(needs) <= memory


def test_the_policy_sets_sizes() -> None:
    """Sizes of the policy win, rounded up to what memory comes in."""
    found = chosen(memory=1000 * MIB, window=33 * MIB)
    assert (found.memory, found.window) == (1024 * MIB, 34 * MIB)


@pytest.mark.parametrize(
    ("spawn", "options", "rules"),
    [
        ({"topology": None}, {}, ["the CPUs are known"]),
        ({"topology": fake.topology(1)}, {}, ["cores"]),
        ({}, {"cores": 4}, ["cores"]),
        ({"bsp": None}, {}, ["real-bsp"]),
        ({"isolated": CpuSet.of(1, 2, 3)}, {}, ["housekeeping-cores"]),
        ({"block_size": 0}, {}, ["memory can be taken offline"]),
        ({"longest_run": 512 * MIB}, {}, ["memory can be taken offline"]),
        ({"memory_available": 800 * MIB}, {}, ["memory can be spared"]),
        ({"root": None}, {}, ["the root file system is known"]),
        ({"root": None, "topology": None}, {}, ["the CPUs are known", "the root file system is known"]),
    ],
)
def test_too_little_is_refused(spawn: Any, options: Any, rules: list[str]) -> None:
    """All that is missing is named at once, with a remedy."""
    assert refused(spawn, **options) == rules


@pytest.mark.parametrize(("spare", "enough"), [(1433, False), (1434, True)])
def test_images_need_memory_in_this_kernel_too(spare: int, enough: bool) -> None:
    """Until the new kernel has them they lie in both."""
    available = (3328 + spare) * MIB + spawn_choice.LEFT_OVER
    facts = fake.facts(
        workloads=(fake.seen(anonymous_bytes=1024 * MIB),),
        spawn=fake.spawn(memory_available=available, longest_run=8 << 30),
    )
    found = choose(facts, fake.policy())
    assert isinstance(found, tuple) is not enough


def test_memory_has_a_remedy_for_the_next_boot() -> None:
    """Too few adjoining blocks: movablecore= of the right size."""
    found = choose(fake.facts(spawn=fake.spawn(longest_run=0)), fake.policy())
    assert isinstance(found, tuple) and "movablecore=2G" in found[0].remedy


def test_unexamined_is_refused() -> None:
    """Without facts there is no choice."""
    found = choose(fake.facts(), fake.policy())
    assert isinstance(found, tuple) and found[0].remedy == "Run kupgrade as root"


@pytest.mark.parametrize(
    "port",
    [
        fake.root_port(PORT_BUS, ""),
        fake.root_port(PORT_BUS, "xhci_hcd"),
        fake.root_port(PORT_BUS, "nvidia", class_code=0x030000),
        fake.root_port(PORT_BUS, "nvme", iommu=DomainType.DMA),
        fake.root_port(PORT_BUS, "nvme", iommu=DomainType.UNKNOWN),
    ],
)
def test_some_devices_never_follow(port: Any) -> None:
    """No driver, one that cannot let go, a display, behind a translating IOMMU: these stay behind."""
    assert chosen({"ports": (*fake.spawn().ports[:2], port)}).later == ()


def test_the_policy_keeps_devices() -> None:
    """Globs of root ports that stay; an identity domain is no obstacle."""
    ports = (*fake.spawn().ports[:2], fake.root_port(PORT_BUS, "nvme", iommu=DomainType.IDENTITY))
    assert chosen({"ports": ports}).later == (PORT_BUS,)
    assert chosen({"ports": ports}, keep=("0000:00:04.*",)).later == ()


def test_the_choice_is_frozen_data() -> None:
    """Equal facts give an equal choice."""
    assert chosen() == chosen() and dataclasses.is_dataclass(chosen())

"""What an instance is given, and what makes it impossible, as a table."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kupgrade.core.instance_choice import InstanceChoice, choose
from kupgrade.errors import UsageError
from kupgrade.model.instance import Wish, checked_name
from kupgrade.model.machine import Cpu, CpuSet, Topology
from kupgrade.model.spawn_facts import ModuleState
from tests.fakes import facts as fake

MIB = 1 << 20


def answer(wish: dict[str, Any], spawn: dict[str, Any], least: int = 0, **facts: Any) -> Any:
    seen = fake.facts(spawn=dataclasses.replace(fake.spawn(), **spawn), **facts)
    return choose(seen, fake.policy(), Wish("rt", "6.13.0", **wish), least)


@pytest.mark.parametrize(
    ("wish", "spawn", "cpus"),
    [
        ({}, {}, (3,)),
        ({"cpus": 2}, {}, (3, 2)),
        ({"cpus": CpuSet.of(1, 3)}, {}, (3, 1)),
        ({"cpus": 1}, {"topology": fake.topology(4, 2)}, (6, 7)),
        ({"cpus": 3}, {"topology": fake.topology(4, 2)}, (6, 7, 4, 5)),
        ({"cpus": CpuSet.of(2, 3)}, {"topology": fake.topology(4, 2), "isolated": CpuSet.of(2, 3)}, (3, 2)),
    ],
)
def test_whole_cores_are_chosen(wish: dict[str, Any], spawn: dict[str, Any], cpus: tuple[int, ...]) -> None:
    """By number from the highest core down, whole cores; by name exactly those, isolated ones too."""
    found = answer(wish, spawn)
    assert isinstance(found, InstanceChoice), found
    assert found.cpus == cpus
    assert found.memory % (128 * MIB) == 0 and found.memory >= 384 * MIB


def hybrid() -> Topology:
    """Two cores of two threads, then four of one."""
    cores = (CpuSet.of(0, 1), CpuSet.of(2, 3), *(CpuSet.of(number) for number in range(4, 8)))
    cpus = ((number, core, mates) for core, mates in enumerate(cores) for number in mates)
    return Topology(tuple(Cpu(number, True, number, core, 0, 0, mates) for number, core, mates in cpus))


@pytest.mark.parametrize(("wanted", "cpus"), [(3, (7, 6, 5)), (4, (7, 6, 5, 4)), (5, (7, 6, 5, 4, 2, 3))])
def test_cores_of_different_kinds_are_at_least_so_many_cpus(wanted: int, cpus: tuple[int, ...]) -> None:
    """Whether a core has one thread or two."""
    assert answer({"cpus": wanted}, {"topology": hybrid()}).cpus == cpus


@pytest.mark.parametrize(
    ("wish", "spawn", "word"),
    [
        ({"cpus": 4}, {}, "4 whole cores are wanted"),
        ({"cpus": CpuSet.of(0, 1)}, {}, "CPU 0 cannot go offline"),
        ({"cpus": CpuSet.of(9)}, {}, "CPU 9 is not online"),
        ({"cpus": CpuSet.of(2)}, {"topology": fake.topology(4, 2)}, "threads of one core"),
        ({"cpus": CpuSet.of(1)}, {"bsp": 1}, "boot-strap processor"),
        ({"cpus": CpuSet()}, {}, "none was named"),
        ({}, {"topology": None}, "unknown"),
        ({}, {"module": ModuleState.MISSING}, "no module kspawn"),
        ({}, {"xen": True}, "CPUs are not started by INIT"),
        ({}, {"ecam": False}, "MCFG"),
        ({"memory": 1 << 45}, {}, "could go offline"),
        ({"memory": 256 * MIB}, {"memory_available": 300 * MIB}, "are available"),
        ({}, {"block_size": 0}, "no memory hotplug"),
    ],
)
def test_every_refusal_names_its_fact(wish: dict[str, Any], spawn: dict[str, Any], word: str) -> None:
    """Not enough CPUs or memory, no kspawn, a machine that cannot: each with fact and remedy, none sends to kexec."""
    found = answer(wish, spawn)
    assert isinstance(found, tuple)
    assert any(word in each.fact for each in found), found
    assert all(each.remedy and "kexec" not in each.remedy for each in found)


def test_a_machine_that_was_not_examined_is_refused() -> None:
    """Without root there are no facts."""
    (found,) = choose(fake.facts(spawn=None), fake.policy(), Wish("rt", "6.13.0"))  # type: ignore[misc]
    assert "root" in found.remedy


def test_what_a_kernel_needs_is_given_or_said() -> None:
    """A large initrd raises the computed size; a smaller --memory is refused with the size that suffices."""
    found = answer({}, {"longest_run": 4 << 30, "memory_available": 8 << 30}, 1024 * MIB)
    assert found.memory == 1024 * MIB
    refusals = answer({"memory": 512 * MIB}, {}, 1024 * MIB)
    assert "--memory 1024" in [each.remedy for each in refusals]


def test_interrupt_remapping_is_no_obstacle() -> None:
    """An instance is given no device, so nobody has to translate its interrupts."""
    assert isinstance(answer({}, {"interrupt_remapping": True, "hypervisor": False}), InstanceChoice)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "..", "a b", "a" * 33, "ä", "a@b"])
def test_a_malformed_name_is_refused(name: str) -> None:
    """A name is part of a path and of a unit."""
    with pytest.raises(UsageError):
        checked_name(name)


def test_a_good_name_is_itself() -> None:
    """Letters, digits, dashes inside."""
    assert [checked_name(each) for each in ("a", "rt-1", "0")] == ["a", "rt-1", "0"]

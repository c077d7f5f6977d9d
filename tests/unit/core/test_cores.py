"""The choice of CPUs: whole cores, housekeeping on both sides, the real BSP last, and every no with its reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.core import cores
from kupgrade.core.cores import CoreChoice
from kupgrade.model.machine import Cpu, CpuSet, Topology
from kupgrade.model.plan import Refusal


def machine(count: int, threads: int = 2, nodes: int = 1, offline: frozenset[int] = frozenset()) -> Topology:
    """`count` cores; threads of a core are numbered far apart, as Linux usually does."""
    cpus = []
    for number in range(count * threads):
        core = number % count
        own = CpuSet(tuple(n for n in range(core, count * threads, count) if n not in offline))
        online = number not in offline
        cpus.append(
            Cpu(
                number,
                online,
                apic_id=core * 2 + number // count if online else None,
                core=core,
                package=0,
                node=core * nodes // count,
                siblings=own if online else None,
            )
        )
    return Topology(tuple(cpus))


def chosen(topology: Topology, count: int, **options: Any) -> CoreChoice:
    found = cores.choose(topology, count, **options)
    assert isinstance(found, CoreChoice), found
    return found


def test_siblings_go_together_and_the_bsp_last() -> None:
    """Four cores of two threads: two cores go now, two later."""
    found = chosen(machine(4), 2)
    assert found.first == (3, 7, 2, 6)
    assert found.stays == CpuSet.of(0, 1, 4, 5)
    assert found.later == (1, 5, 4, 0)


def test_a_spawned_kernel_holds_the_real_bsp_back() -> None:
    """There it is not CPU 0; it may go late, but CPU 0, which never goes offline, is the last."""
    found = chosen(machine(4, 1), 1, bsp=3)
    assert found.first == (2,)
    assert found.later == (1, 3, 0)


@pytest.mark.parametrize("bsp", [None, 9])
def test_an_unknown_bsp_is_no_reason_to_guess(bsp: int | None) -> None:
    """INIT to it would reset the machine."""
    found = cores.choose(machine(4), 1, bsp=bsp)
    assert isinstance(found, Refusal)
    assert found.rule == "real-bsp"


def test_offline_cpus_are_named() -> None:
    """They must not be forgotten in the old kernel's memory."""
    assert chosen(machine(4, offline=frozenset({5, 7})), 1).offline == CpuSet.of(5, 7)


def test_cores_of_the_memorys_node_come_first() -> None:
    """Before those with higher numbers."""
    assert chosen(machine(4, 1, nodes=2), 1, node=0).first == (1,)
    assert chosen(machine(4, 1, nodes=2), 1, node=1).first == (3,)


def test_each_side_keeps_a_housekeeping_core() -> None:
    """Isolated cores run nothing by themselves: the one that boots is not isolated."""
    assert chosen(machine(4, 1), 2, isolated=CpuSet.of(2, 3)).first == (1, 3)
    found = chosen(machine(4, 1), 2, isolated=CpuSet.of(0, 3))
    assert found.first == (2, 3)
    assert 1 in found.stays


@pytest.mark.parametrize(
    ("topology", "count", "options", "rule", "fact"),
    [
        (machine(1), 1, {}, "cores", "0 of 1"),
        (machine(2, 1), 2, {}, "cores", "1 of 2"),
        (machine(4), 0, {}, "cores", "0 cores"),
        (machine(4, 1), 2, {"kept": CpuSet.of(2), "cannot": CpuSet.of(3)}, "cores", "kept: 2; cannot go offline: 3"),
        (machine(3, 1), 1, {"isolated": CpuSet.of(1, 2)}, "housekeeping-cores", "isolated CPUs (1-2)"),
        (machine(2, 1), 1, {"isolated": CpuSet.of(0)}, "housekeeping-cores", "isolated CPUs only"),
    ],
)
def test_a_no_says_why(topology: Topology, count: int, options: dict[str, Any], rule: str, fact: str) -> None:
    """The rule, and the CPUs that it met."""
    found = cores.choose(topology, count, **options)
    assert isinstance(found, Refusal)
    assert found.rule == rule
    assert fact in found.fact
    assert found.remedy


def test_a_cpu_of_unknown_apic_id_is_not_given() -> None:
    """It could not be named to the module that starts it."""
    topology = Topology((Cpu(0, True, 0), Cpu(1, True, 2), Cpu(2, True)))
    assert chosen(topology, 1).first == (1,)


cpu_sets = st.sets(st.integers(0, 15)).map(lambda numbers: CpuSet(tuple(numbers)))


@given(
    st.integers(1, 8),
    st.integers(1, 2),
    st.integers(1, 8),
    cpu_sets,
    cpu_sets,
    st.frozensets(st.integers(1, 15)),
    st.integers(0, 15),
)
def test_every_choice_keeps_the_rules(
    count: int, threads: int, wanted: int, kept: CpuSet, isolated: CpuSet, offline: frozenset[int], bsp: int
) -> None:
    """Whatever is pinned, isolated or offline."""
    topology = machine(count, threads, offline=offline)
    found = cores.choose(topology, wanted, kept=kept, isolated=isolated, bsp=bsp)
    if isinstance(found, Refusal):
        return
    given_away = found.given
    assert len([core for core in topology.cores if core & given_away]) == wanted
    assert all(core.issubset(given_away) or not core & given_away for core in topology.cores)
    assert not given_away & (kept | CpuSet.of(0, bsp))
    assert given_away | found.stays == topology.online
    assert found.stays
    assert CpuSet(found.later) == found.stays
    assert len(found.later) == len(found.stays)
    assert found.later[-1] == 0
    assert found.first[0] not in isolated
    for side in (given_away, found.stays):
        assert any(not core & isolated for core in topology.cores if core & side)

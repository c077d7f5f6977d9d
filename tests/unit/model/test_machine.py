"""Words for a machine's parts: what is read is what the kernel means, and nonsense never becomes a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.model.codec import decode, encode
from kupgrade.model.machine import Cpu, CpuSet, MemoryRange, PciAddress, Topology

ranges = st.builds(MemoryRange, st.integers(0, 1 << 20), st.integers(1, 1 << 18))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-3,8\n", (0, 1, 2, 3, 8)),
        ("", ()),
        ("\n", ()),
        ("(null)\n", ()),
        ("5", (5,)),
        ("0-9:2/4", (0, 1, 4, 5, 8, 9)),
        ("3,1,2,2", (1, 2, 3)),
    ],
)
def test_lists_of_cpus_are_read_as_the_kernel_writes_them(text: str, numbers: tuple[int, ...]) -> None:
    """Ranges, groups, doubles, and the words for none."""
    assert CpuSet.parse(text).numbers == numbers


@pytest.mark.parametrize("text", ["a", "1-", "-1", "3-1", "0-70000", "1,,2", "0-3:0/2", "0-3:3/2", "0-3:1/0", "1 2"])
def test_a_list_of_another_shape_is_refused(text: str) -> None:
    """Nothing is guessed from it."""
    with pytest.raises(BadInputError):
        CpuSet.parse(text)


@given(st.sets(st.integers(0, 300)))
def test_cpu_sets_round_trip(numbers: set[int]) -> None:
    """As the kernel's list and as stored data."""
    cpus = CpuSet(tuple(numbers))
    assert CpuSet.parse(str(cpus)) == cpus == decode(CpuSet, encode(cpus))


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_cpu_sets_are_sets(left: set[int], right: set[int]) -> None:
    """Union, intersection, difference, subset, length and membership agree with Python's."""
    a, b = CpuSet(tuple(left)), CpuSet(tuple(right))
    assert (set(a | b), set(a & b), set(a - b)) == (left | right, left & right, left - right)
    assert (a.issubset(b), len(a), 7 in a) == (left <= right, len(left), 7 in left)


@given(ranges, st.lists(ranges, max_size=6))
def test_what_is_left_of_a_range_is_exact(whole: MemoryRange, others: list[MemoryRange]) -> None:
    """The rest overlaps nothing, is in order, and together with the others covers the whole."""
    rest = whole.without(others)
    assert list(rest) == sorted(rest)
    for piece in rest:
        assert piece in whole
        assert not any(piece.overlaps(other) for other in others)
    edges = sorted({whole.start, *(p for o in others for p in (o.start, o.end) if p in whole)})
    for edge in edges:
        assert any(edge in piece for piece in rest) != any(edge in other for other in others)


@pytest.mark.parametrize(("start", "size"), [(-1, 5), (0, 0), (5, -5), ((1 << 52) - 1, 2)])
def test_an_impossible_range_is_refused(start: int, size: int) -> None:
    """Nothing before 0, nothing empty, nothing above what the architecture can address."""
    with pytest.raises(BadInputError):
        MemoryRange(start, size)


@given(st.builds(PciAddress, st.integers(0, 0x1FFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7)))
def test_pci_addresses_round_trip(address: PciAddress) -> None:
    """Domains beyond 16 bits (VMD) included."""
    assert PciAddress.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", "00:01.0", "0000:00:1f.8", "0000:00:20.0", "0000:00:01.0 ", "g000:00:00.0"])
def test_text_that_is_no_pci_address_is_refused(text: str) -> None:
    """Also one with a device number that does not exist."""
    with pytest.raises(BadInputError):
        PciAddress.parse(text)


def test_a_topology_knows_its_cores() -> None:
    """Siblings make a core; an offline CPU is in none; one of unknown core stands alone."""
    pair = CpuSet.of(0, 2)
    topology = Topology(
        (Cpu(0, True, 0, siblings=pair), Cpu(1, False), Cpu(2, True, 1, siblings=pair), Cpu(3, True, 6))
    )
    assert topology.cores == (pair, CpuSet.of(3))
    assert (topology.online, topology.present) == (CpuSet.of(0, 2, 3), CpuSet.of(0, 1, 2, 3))


@pytest.mark.parametrize(
    "cpus",
    [
        (Cpu(1, True), Cpu(0, True)),
        (Cpu(0, True, 4), Cpu(1, True, 4)),
        (Cpu(0, True, siblings=CpuSet.of(0, 1)), Cpu(1, True, siblings=CpuSet.of(1))),
        (Cpu(0, True, siblings=CpuSet.of(0, 9)),),
        (Cpu(0, True, siblings=CpuSet.of(1)), Cpu(1, True, siblings=CpuSet.of(1))),
    ],
)
def test_a_topology_that_contradicts_itself_is_refused(cpus: tuple[Cpu, ...]) -> None:
    """Order, APIC IDs and siblings have to agree."""
    with pytest.raises(BadInputError):
        Topology(cpus)


def test_a_cpu_is_found_by_its_apic_id() -> None:
    """Logical numbers of two kernels differ; APIC IDs do not."""
    topology = Topology((Cpu(0, True, 6), Cpu(1, True, 0), Cpu(2, False)))
    assert topology.with_apic_id(0) == Cpu(1, True, 0)
    assert topology.with_apic_id(1) is None


def test_one_cpu_is_found_or_named_as_missing() -> None:
    """The error names what is there."""
    topology = Topology((Cpu(0, True), Cpu(4, True)))
    assert topology.cpu(4).number == 4
    with pytest.raises(BadInputError, match="present are 0,4"):
        topology.cpu(2)

"""The layout of the box: nothing overlaps, everything is inside and aligned, and the memory map covers it exactly."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kupgrade.core import box
from kupgrade.core.box import GIB, KIB, LOW_SLICES, MIB, SECTION, Box, BoxNeeds
from kupgrade.errors import BadInputError
from kupgrade.kernel import e820, pagetables
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import MemoryType
from kupgrade.model.plan import Refusal

SEEN = BoxNeeds(init_size=66 * MIB, initrd=24 * MIB, root_image=512 * MIB, window=GIB + 512 * MIB)

needs = st.builds(
    BoxNeeds,
    init_size=st.integers(1, 300 * MIB),
    initrd=st.integers(0, 400 * MIB),
    root_image=st.one_of(st.just(0), st.integers(1, 2 * GIB)),
    window=st.integers(4 * KIB, 2 * GIB),
    alignment=st.sampled_from([4 * KIB, 2 * MIB, 16 * MIB, 256 * MIB]),
    spare=st.integers(0, GIB),
)
starts = st.integers(1, (1 << 39) - 1).map(lambda number: number * SECTION).filter(lambda at: at < (1 << 46) - 64 * GIB)


def pieces(one: Box) -> list[MemoryRange]:
    """Everything that must not overlap, control area and RAM's contents."""
    single = (MemoryRange(at, 4 * KIB) for at in (one.mailbox, one.registers, one.zero_page))
    optional = (one.initrd, one.root_image)
    always = (one.low, one.park, one.setup_data, one.cmdline, one.acpi, one.page_tables, one.kernel, one.window)
    return sorted([*single, *always, *(each for each in optional if each)])


def check(one: Box, wanted: BoxNeeds) -> None:
    for before, after in pairwise(pieces(one)):
        assert before.end <= after.start, f"{before} overlaps {after}"
    assert all(piece in one.whole for piece in pieces(one) if piece != one.low)
    assert one.kernel in one.ram
    assert one.kernel.start % wanted.alignment == 0
    assert one.initrd is None or (one.initrd in one.ram and one.initrd.size == wanted.initrd)
    assert one.initrd is None or one.initrd.start % 4096 == 0
    assert one.ram.size >= wanted.init_size + wanted.initrd + wanted.spare
    assert one.window.size >= wanted.window
    assert (one.root_image.size if one.root_image else 0) >= wanted.root_image
    for at in (one.ram.start, one.page_tables.start, one.acpi.start, one.park.start, one.zero_page):
        assert at % 4096 == 0
    assert one.window.start % SECTION == one.ram.end % SECTION == 0
    assert one.park.start == one.mailbox + 4096
    inside = [each for each in one.memory_map if each.range in one.whole]
    assert inside[0].range.start == one.whole.start
    assert inside[-1].range.end == one.whole.end
    assert all(before.range.end == after.range.start for before, after in pairwise(inside))
    kinds = {each.range: each.type for each in one.memory_map}
    assert kinds[one.ram] is kinds[one.low] is MemoryType.RAM
    assert kinds[one.acpi] is MemoryType.ACPI
    assert kinds[one.window] is MemoryType.RESERVED
    assert one.root_image is None or kinds[one.root_image] is MemoryType.PRAM
    e820.encode(one.memory_map)


@given(needs, starts)
@settings(max_examples=150, deadline=None)
def test_the_needed_size_is_always_enough(wanted: BoxNeeds, start: int) -> None:
    """At every base on a section boundary, and then the layout holds together."""
    size = box.needed_size(wanted)
    assert size % SECTION == 0
    one = box.layout(MemoryRange(start, size), wanted, LOW_SLICES[0])
    assert isinstance(one, Box)
    check(one, wanted)


@given(needs, st.integers(1, 1 << 14), st.integers(1, 4096))
@settings(max_examples=150, deadline=None)
def test_any_box_is_laid_out_or_refused(wanted: BoxNeeds, start: int, size: int) -> None:
    """At every base and size of 2 MiB steps; a refusal names how much would do."""
    whole = MemoryRange(start * 2 * MIB, size * 2 * MIB)
    one = box.layout(whole, wanted, LOW_SLICES[1])
    if isinstance(one, Refusal):
        assert f"{box.needed_size(wanted) // MIB} MiB" in one.remedy
        assert f"{whole.size // MIB} MiB" in one.fact
    else:
        check(one, wanted)


@given(starts, st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_page_tables_fit_into_their_place(start: int, gib: int) -> None:
    """For boxes of up to 200 GiB, wherever they lie."""
    one = box.layout(MemoryRange(start, gib * GIB + 4 * GIB), SEEN, LOW_SLICES[0])
    assert isinstance(one, Box)
    assert pagetables.identity(one.page_tables.start, one.whole, one.page_tables.size)


def test_the_entry_point_is_behind_the_load_address() -> None:
    """The 64-bit entry of a bzImage."""
    one = box.layout(MemoryRange(0x140000000, 4 * GIB), SEEN, LOW_SLICES[0])
    assert isinstance(one, Box)
    assert one.entry == one.kernel.start + 0x200 == 0x141000200


def test_ranges_elsewhere_are_called_reserved() -> None:
    """Configuration space of PCI; one that reaches into the box is a mistake."""
    ecam = MemoryRange(0xBFF00000, MIB)
    one = box.layout(MemoryRange(0x140000000, 4 * GIB), SEEN, LOW_SLICES[0], [ecam])
    assert isinstance(one, Box)
    assert [each.type for each in one.memory_map if each.range == ecam] == [MemoryType.RESERVED]
    with pytest.raises(BadInputError, match="overlaps"):
        box.layout(MemoryRange(0x140000000, 4 * GIB), SEEN, LOW_SLICES[0], [MemoryRange(0x140000000, MIB)])


@pytest.mark.parametrize(("start", "size"), [(MIB, GIB), (GIB, GIB + MIB), (0, GIB), ((1 << 46) - GIB, 2 * GIB)])
def test_a_box_that_no_kernel_can_live_in_is_refused(start: int, size: int) -> None:
    """Not aligned, over the first MiB, out of reach."""
    with pytest.raises(BadInputError):
        box.layout(MemoryRange(start, size), SEEN, LOW_SLICES[0])


@pytest.mark.parametrize("field", ["init_size", "window", "alignment", "spare", "initrd", "root_image"])
def test_sizes_that_make_no_sense_are_refused(field: str) -> None:
    """Negative ones, and an alignment that is no power of two."""
    values = {"init_size": MIB, "initrd": 0, "root_image": 0, "window": MIB}
    with pytest.raises(BadInputError):
        BoxNeeds(**{**values, field: -3})


USUAL = (MemoryRange.between(0x1000, 0x9FC00),)


@pytest.mark.parametrize(
    ("usable", "in_use", "found"),
    [
        (USUAL, (), LOW_SLICES[0]),
        (USUAL, (MemoryRange(0x10000, 0x1000), MemoryRange.between(0x98000, 0xA0000)), LOW_SLICES[0]),
        (USUAL, (LOW_SLICES[0],), LOW_SLICES[1]),
        (USUAL, (LOW_SLICES[1],), LOW_SLICES[0]),
        # Firmware keeps a page at 0x58000, as some real machines do.
        ((MemoryRange.between(0x1000, 0x58000), MemoryRange.between(0x59000, 0x9F000)), (), LOW_SLICES[1]),
        (USUAL, (MemoryRange(0x42000, 0x1000), MemoryRange(0x72000, 0x1000)), MemoryRange(0x11000, 0x30000)),
        (USUAL, LOW_SLICES, None),
        ((), (), None),
    ],
)
def test_each_generation_gets_a_low_slice_of_its_own(usable, in_use, found) -> None:
    """The first that is RAM and not in use; else any stretch that is large enough; else a refusal that names all."""
    chosen = box.low_slice(usable, in_use)
    if found is None:
        assert isinstance(chosen, Refusal)
    else:
        assert chosen == found

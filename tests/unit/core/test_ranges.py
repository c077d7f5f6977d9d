"""Ranges against a table of every page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kupgrade.core.ranges import Range, Ranges

ROOM = 40
places = st.integers(0, ROOM)
deeds = st.lists(
    st.one_of(
        st.tuples(st.just("drop"), places, places),
        st.tuples(st.just("move"), places, places, st.integers(1, ROOM)),
    ),
    max_size=8,
)


def table(ranges: Ranges) -> dict[int, int]:
    """Each address, and where it was in the image."""
    found: dict[int, int] = {}
    last = -1
    for each in ranges:
        assert each.start >= last and each.start < each.end
        last = each.end
        found |= {at: each.image + at - each.start for at in range(each.start, each.end)}
    return found


@given(deeds)
def test_ranges_are_what_a_table_of_pages_is(done: list[tuple[str | int, ...]]) -> None:
    """Dropped, moved onto each other, asked for: always the same."""
    ranges = Ranges([Range(3, 9, 3), Range(9, 12, 9), Range(20, 33, 120)])
    wanted = table(ranges)
    for deed in done:
        if deed[0] == "drop":
            start, end = int(deed[1]), int(deed[2])
            gone = ranges.drop(start, end)
            assert table(Ranges(gone)) == {at: wanted[at] for at in wanted if start <= at < end}
            wanted = {at: image for at, image in wanted.items() if not start <= at < end}
        else:
            start, to, length = int(deed[1]), int(deed[2]), int(deed[3])
            moved = {at - start + to: image for at, image in wanted.items() if start <= at < start + length}
            rest = {at: image for at, image in wanted.items() if not start <= at < start + length}
            wanted = {at: image for at, image in rest.items() if not to <= at < to + length} | moved
            ranges.move(start, to, length)
        assert table(ranges) == wanted
    for at in range(2 * ROOM):
        found = ranges.find(at)
        assert (found.image if found else None) == wanted.get(at)
    first = ranges.first()
    assert (first.start if first else None) == (min(wanted) if wanted else None)

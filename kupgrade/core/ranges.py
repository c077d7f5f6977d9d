"""Which addresses of a process still wait for pages of an image, while it unmaps, moves and discards memory.

A range remembers the address that its pages had when they were dumped. All numbers are bytes, whole pages.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """From `start` to before `end` now; `image`: where `start` was when it was dumped."""

    start: int
    end: int
    image: int

    def part(self, start: int, end: int) -> Range:
        """What of it lies between two addresses inside."""
        return Range(start, end, self.image + start - self.start)


class Ranges:
    """Ranges that do not overlap, by address."""

    __slots__ = ("_sorted",)

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._sorted = sorted(ranges)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._sorted)

    def __len__(self) -> int:
        return len(self._sorted)

    def first(self) -> Range | None:
        """The lowest; None: nothing waits any more."""
        return self._sorted[0] if self._sorted else None

    def find(self, address: int) -> Range | None:
        """The one that holds an address, from there on."""
        at = bisect_right(self._sorted, address, key=lambda each: each.start) - 1
        if at < 0 or self._sorted[at].end <= address:
            return None
        return self._sorted[at].part(address, self._sorted[at].end)

    def add(self, new: Range) -> None:
        """One more, where there was none."""
        insort(self._sorted, new)

    def drop(self, start: int, end: int) -> tuple[Range, ...]:
        """Nothing between these addresses waits any more; what did."""
        at = max(0, bisect_right(self._sorted, start, key=lambda each: each.start) - 1)
        taken, kept = [], []
        last = at
        while last < len(self._sorted) and self._sorted[last].start < end:
            each = self._sorted[last]
            low, high = max(each.start, start), min(each.end, end)
            if low >= high:
                kept.append(each)
            else:
                taken.append(each.part(low, high))
                if each.start < low:
                    kept.append(each.part(each.start, low))
                if high < each.end:
                    kept.append(each.part(high, each.end))
            last += 1
        self._sorted[at:last] = kept
        return tuple(taken)

    def move(self, start: int, to: int, length: int) -> None:
        """What waits between `start` and `start + length` waits at `to` from now on; what waited there does not."""
        moved = self.drop(start, start + length)
        self.drop(to, to + length)
        for each in moved:
            self.add(Range(each.start - start + to, each.end - start + to, each.image))

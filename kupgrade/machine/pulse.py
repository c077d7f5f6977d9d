"""Whether a kernel still runs, by its heartbeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from kupgrade.errors import KupgradeError

# The most that counts of the time between two looks (seconds): who was stopped himself has not seen that nothing beat.
LOOK = 1.0


@dataclass
class Pulse:
    """Nothing seen for `limit` seconds of looking means that the other kernel stands still. `clock` as in time."""

    beats: Callable[[], int]
    limit: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        """It begins as seen now."""
        self._seen, self._looked, self.silent = self.beats(), self.clock(), 0.0

    def check(self) -> None:
        """Look. Raises KupgradeError when nothing was seen for too long."""
        now, seen = self.clock(), self.beats()
        self.silent += min(now - self._looked, LOOK)
        self._looked = now
        if seen != self._seen:
            self._seen, self.silent = seen, 0.0
        if self.silent > self.limit:
            raise KupgradeError("The new kernel stands still", f"no heartbeat for {self.limit:g} s")

    def answered(self) -> None:
        """It was heard of otherwise."""
        self._looked, self.silent = self.clock(), 0.0

"""Memory that is filled in place, in the modelled host: by processes that no end of the tool touches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kupgrade.errors import KupgradeError, NeedsHumanError

if TYPE_CHECKING:
    from tests.fakes.machine import Machine

LASTS = 120  # ticks: longer than from the restore to the wait for it
ROTTEN = 40  # ticks until a damaged chunk is met


class Filling:
    """What still waits for pages of the images, by workload: ticks left."""

    def __init__(self, machine: Machine, lasts: int = LASTS) -> None:
        self.m, self.lasts = machine, lasts
        self.left: dict[str, int] = {}
        self.failed: set[str] = set()
        self.sums = False  # what is placed is read before it is, and not all of it before the commit

    def begin(self, name: str) -> None:
        self.left[name] = self.lasts
        self.sums = True

    def ended(self, name: str) -> None:
        self.left.pop(name, None)
        self.failed.discard(name)

    def booted(self) -> None:
        """Every process ends with its kernel."""
        self.left.clear()
        self.failed.clear()
        self.sums = False

    def work(self) -> None:
        """One tick of whoever fills."""
        fails = self.m.behaviour.unplaceable
        for name in list(self.left):
            if name not in self.m.images:
                self.m.violate(f"{name} waits for memory and its image is gone")
            self.left[name] -= 1
            rotten = self.m.behaviour.damaged_images == "a round" and self.left[name] < self.lasts - ROTTEN
            chosen = fails and name == self.m.workloads[0].name
            if rotten or (chosen and (fails == "before" or self.m.committed)):
                self._fail(name)
            elif self.left[name] <= 0:
                del self.left[name]

    def _fail(self, name: str) -> None:
        """The workload ends by SIGKILL; after the commit that costs its run, as the documents say."""
        del self.left[name]
        self.failed.add(name)
        self.m.copies.pop(name, None)
        if self.m.committed:
            self.m.excused = True
            self.m.connected[name] = False

    def check(self, names: Iterable[str]) -> None:
        if self.failed & set(names):
            raise KupgradeError("The memory was not filled to the end")

    def filled(self, names: Iterable[str]) -> bool | None:
        asked = set(names)
        if self.failed & asked:
            return None
        return not asked & set(self.left)

    def finish(self, name: str) -> None:
        while name in self.left:
            self.m.tick(f"wait for the memory of {name}")
        if name in self.failed:
            raise NeedsHumanError("The memory was not filled to the end")

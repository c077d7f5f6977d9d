"""The port `After`: soak time, and /run/reboot-required."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.host import reboot_required
from kupgrade.machine.places import Places
from kupgrade.model.reboot import RebootWishes

_LONGEST_SLEEP = 60.0  # seconds; time that the machine sleeps counts, too


@dataclass
class RealAfter:
    """This machine after the commit."""

    places: Places

    def uptime(self) -> float:
        """CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait_until(self, uptime: float) -> None:
        """In pieces."""
        while (left := uptime - self.uptime()) > 0:
            time.sleep(min(left, _LONGEST_SLEEP))

    def reboot_wishes(self) -> RebootWishes:
        """As they lie there."""
        return reboot_required.read(self._root)

    def settle_reboot(self, release: str, others: Sequence[str]) -> None:
        """See the port."""
        reboot_required.settle(release, others, self._root)

    @property
    def _root(self) -> Path:
        return self.places.root

"""The port of what comes after the commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kupgrade.model.reboot import RebootWishes


class After(Protocol):
    """This boot's clock, and the file by which packages ask for a restart."""

    def uptime(self) -> float:
        """CLOCK_BOOTTIME in seconds."""
        ...

    def wait_until(self, uptime: float) -> None:
        """Return at this uptime (seconds), at once when it is over."""
        ...

    def reboot_wishes(self) -> RebootWishes:
        """Who asks for a restart."""
        ...

    def settle_reboot(self, release: str, others: Sequence[str]) -> None:
        """Take out what `release` answers, and name `others`. The file stays while anybody, or nobody known, asks."""
        ...

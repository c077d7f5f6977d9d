"""The port of units that stand still over the crossing, and are started again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kupgrade.model.workload import StopOrder


class Stopping(Protocol):
    """Units of the service manager."""

    def up(self, units: Sequence[str]) -> tuple[str, ...]:
        """Of `units`, of what stops with them and of what could start them: all that run, or are about to."""

    def kept_down(self) -> tuple[str, ...]:
        """Units that nobody can start now, in this boot and the next ones."""

    def keep_down(self, units: Sequence[str], upgrade: str) -> None:
        """Let nobody start them from now on, durably; one that runs goes on."""

    def stop(self, orders: Sequence[StopOrder], units: Sequence[str]) -> None:
        """Stop `units`; raise KupgradeError when one has not ended, or not cleanly, in the time of `orders`."""

    def let_go(self, units: Sequence[str]) -> tuple[str, ...]:
        """Start `units` in the background, and let anybody start what was kept down; those that could not be."""

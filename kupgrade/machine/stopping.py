"""The port `Stopping`: systemd's units."""

from __future__ import annotations

from collections.abc import Sequence

from kupgrade.host import stopping
from kupgrade.host.systemd import Systemd
from kupgrade.model.workload import StopOrder


class RealStopping:
    """Units of this machine's systemd."""

    def __init__(self, systemd: Systemd) -> None:
        self._down = stopping.KeptDown(systemd)

    def up(self, units: Sequence[str]) -> tuple[str, ...]:
        """See the port."""
        return tuple(each.name for each in stopping.with_company(units) if each.up)

    def kept_down(self) -> tuple[str, ...]:
        """See the port."""
        return self._down.units()

    def keep_down(self, units: Sequence[str], upgrade: str) -> None:
        """See the port."""
        self._down.lay(units, upgrade)

    def stop(self, orders: Sequence[StopOrder], units: Sequence[str]) -> None:
        """See the port."""
        stopping.stop(units, {each.unit: each.timeout for each in orders})

    def let_go(self, units: Sequence[str]) -> tuple[str, ...]:
        """See the port."""
        return self._down.let_go(units)

"""The port of descriptor stores: what the service manager holds for services that are not kept themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Descriptors(Protocol):
    """Descriptor stores of this host, and what of them is in a live update session."""

    def running(self, units: Sequence[str]) -> Sequence[str]:
        """Those of the units that run, so that what is in their store may still change."""

    def hold(self, session: str, units: Sequence[str], strict: Sequence[str]) -> Mapping[str, str | int]:
        """Put all memory in these stores into a session that outlives this process; by descriptor what became of it.

        Raises KupgradeError for a descriptor of a `strict` unit that cannot be handed over.
        """

    def held(self, session: str) -> bool | None:
        """Whether this kernel would hand them to the next one, if it ended now; None: unknown."""

    def let_go(self, session: str) -> None:
        """It hands them over no more: the stores of this kernel have them."""

    def give_back(self, session: str, expected: Sequence[str]) -> Mapping[str, str | int]:
        """Into the stores of their units, which do not run yet; by descriptor what became of it, lost ones included.

        `expected`: the names of those that are lost when the session is. Done once in a boot; asked again it says that.
        """

    def given_back(self, session: str) -> bool:
        """Whether that was done in this boot, to its end."""

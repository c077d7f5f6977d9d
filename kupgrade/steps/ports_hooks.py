"""The port of hooks: programs of the operator's, called at fixed points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kupgrade.model.hook import Hook, HookPoint


class Hooks(Protocol):
    """Hooks of this host; what they do nobody can see."""

    def digests(self, hooks: Sequence[Hook]) -> tuple[str, ...]:
        """SHA-256 of each file as it is now, empty for one that must not be called any more."""

    def call(self, hook: Hook, timeout: float) -> None:
        """Call it (seconds). Raises NotNowError for exit status 75, RefusedError for every other one but 0."""

    def take_back(self, hook: Hook, timeout: float) -> None:
        """Call its inverse, if it has one and that is unchanged. Never raises: a way back does not end at a hook."""

    def complete(self, point: HookPoint) -> None:
        """Remember that the hooks of this point all came back."""

    def completed(self, point: HookPoint) -> bool:
        """Whether they did, as far as this process knows."""

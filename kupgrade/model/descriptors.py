"""Descriptors that the service manager holds for services: its descriptor stores, and what of them can be preserved."""

from __future__ import annotations

import enum
from dataclasses import dataclass

MEMORY = "memfd"  # the one kind that a kernel hands to the next one
# What became of a descriptor, as figures of steps say it; behind the second one stands why.
RETURNED, LOST = "returned", "lost: "
HOLD, RETURN = "hold-descriptors", "return-descriptors"  # the steps


class StoreLosses(enum.Enum):
    """What it means that a stored descriptor cannot be preserved."""

    TELL = "tell"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class PreservePolicy:
    """A service whose descriptor store is to come through the upgrade."""

    unit: str
    losses: StoreLosses = StoreLosses.TELL


@dataclass(frozen=True, slots=True)
class StoredDescriptor:
    """One descriptor in a store. `name`: its FDNAME; `kind`: memfd, socket, pipe, eventfd, ...; `size`: bytes."""

    name: str
    kind: str
    size: int = 0

    @property
    def kept(self) -> bool:
        """Whether a kernel can hand it to the next one."""
        return self.kind == MEMORY


@dataclass(frozen=True, slots=True)
class DescriptorStore:
    """The store of one service, as the service manager tells it. `held`: how many descriptors are in it.

    `limit`: FileDescriptorStoreMax=; `mode`: FileDescriptorStorePreserve=; `session`: LUOSession=, empty for none;
    `wanted`: another unit pulls it in, so that systemd does not forget it and its store when it is stopped.
    """

    unit: str
    loaded: bool
    active: bool
    limit: int = 0
    mode: str = "no"
    session: str = ""
    held: int = 0
    descriptors: tuple[StoredDescriptor, ...] = ()
    wanted: bool = True

"""Words for the handover: what the new kernel is told, and how far it says it is."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Stage(enum.Enum):
    """How far the new kernel is, as its agent tells."""

    WAITING = "waiting"  # not told to take over
    TAKING = "taking"  # devices, root file system, restore: nothing that cannot be taken back
    FAILED = "failed"  # it gives up; nothing was written
    COMMITTED = "committed"
    RETIRE = "retire"  # asks the old kernel for the rest
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Standing:
    """A stage; `why` when it failed; `ports`: root ports it still asks for."""

    stage: Stage
    why: str = ""
    ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkName:
    """A network interface by its hardware address."""

    mac: str
    name: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A part of the handover that is over; `time`: seconds since the epoch, by the clock that both kernels share."""

    what: str
    time: float


@dataclass(frozen=True, slots=True)
class TakeOver:
    """All that the new kernel needs besides the images. `table`: an SSDT in base64; `clock`: seconds since the epoch.

    `uuid`, `fstype`, `options`: of the root file system. `marks`: what was done until then, and when.
    """

    table: str
    uuid: str
    fstype: str
    options: str
    store: str
    links: tuple[LinkName, ...]
    clock: float
    environment: Mapping[str, str]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an image file: its name below the store's path, where in it, and what it is called in the window."""

    name: str
    offset: int
    piece: str

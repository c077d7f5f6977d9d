"""Hooks: programs of the operator's that are called at fixed points of an upgrade."""

from __future__ import annotations

import enum
from dataclasses import dataclass

UNDO = ".undo"  # NAME.undo beside NAME is its inverse


class HookPoint(enum.Enum):
    """When hooks are called; the values are the names of their directories, without `.d`.

    The order is that of an upgrade. Those after the commit can refuse nothing any more.
    """

    GATE = "gate"  # asked at the very beginning and once more before the freeze: may I, now?
    PRE_DUMP = "pre-dump"  # before the memory is copied for the first time; the workloads run
    POST_DUMP = "post-dump"  # frozen and dumped
    PRE_RESTORE = "pre-restore"  # in the new kernel, nothing is there yet
    PRE_RESUME = "pre-resume"  # restored and probed in the dark; the last word before the commit
    POST_RESUME = "post-resume"  # the workloads serve
    COMMIT = "commit"  # the new kernel is the default


BLACKOUT = (HookPoint.POST_DUMP, HookPoint.PRE_RESTORE, HookPoint.PRE_RESUME)
IN_NEW_KERNEL = (HookPoint.PRE_RESTORE, HookPoint.PRE_RESUME)


@dataclass(frozen=True, slots=True)
class Hook:
    """One program and its inverse. `digest`: SHA-256 of the file; `undo` is empty when it has no inverse."""

    point: HookPoint
    name: str
    path: str
    digest: str
    undo: str = ""
    undo_digest: str = ""


@dataclass(frozen=True, slots=True)
class HookFault:
    """A file that must not be called as it is: why, and what to do."""

    path: str
    why: str
    remedy: str

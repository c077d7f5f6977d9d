"""Words for an instance: a kernel beside the host's that is no upgrade, on CPUs and memory of its own."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from kupgrade.errors import UsageError
from kupgrade.model.machine import CpuSet

ENGINE = "instance"  # of its plan; such a plan never commits: it stands until somebody asks for its end
NAME_LIMIT = 32
PARAMETER = "kupgrade.instance"  # on its command line: its name
RUN_TIMEOUT = 60.0  # seconds that a command in it may take

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")  # part of a path and of a unit's name


def checked_name(text: str) -> str:
    """An instance's name. Raises UsageError for one that is malformed."""
    if len(text) > NAME_LIMIT or not _NAME.fullmatch(text):
        raise UsageError(
            f"{text!r:.60} is no name for an instance",
            f"it takes 1 to {NAME_LIMIT} of a-z, 0-9 and -, no - at either end",
            "Choose another name",
        )
    return text


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator wants. `kernel`: release or path. `initrd`: path; empty: the one with our agent in it.

    `cpus`: how many, or which. `memory`: bytes; 0: computed. `append`: more words for its command line.
    """

    name: str
    kernel: str
    initrd: str = ""
    cpus: int | CpuSet = 1
    memory: int = 0
    append: str = ""


class Life(enum.Enum):
    """What is known of an instance."""

    ALIVE = "alive"  # its agent's heartbeat goes on
    SILENT = "silent"  # it has an agent, whose heartbeat stands still
    PANICKED = "panicked"
    ENDED = "ended"  # it wanted a reset or power off, or halted
    UNKNOWN = "unknown"  # there is no agent in it, or the machine does not tell
    STARTING = "starting"  # a process works on its start
    HALF_STARTED = "half-started"  # its start was cut short, and nobody goes on with it
    STOPPING = "stopping"
    GONE = "gone"  # the host was restarted: it ended then, its files are still there
    HANDS_OFF = "hands-off"  # a person is needed


@dataclass(frozen=True, slots=True)
class Seen:
    """A look at a kernel that runs. `age`: seconds since its last heartbeat; None: not known. `why`: in words."""

    life: Life
    age: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command in an instance: its exit status (negative: the signal), the end of what it wrote to both outputs."""

    status: int
    said: str


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of `kupgrade instance list`. `memory`: bytes. `since`: seconds since the epoch.

    `keeper`: the process that works on it or watches it.
    """

    name: str
    life: Life
    release: str
    cpus: str
    memory: int
    since: float | None
    age: float | None = None
    why: str = ""
    keeper: int | None = None
    agent: bool = True

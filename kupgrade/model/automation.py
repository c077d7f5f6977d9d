"""Words of the automation: what a package asked for, and what was made of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

REQUEST_FORMAT = "kupgrade.request/1"
AUTOMATION_FORMAT = "kupgrade.automation/1"


@dataclass(frozen=True, slots=True)
class Request:
    """A package brought the kernel `release`; `source`: which hook says so. `time`: seconds since the epoch."""

    release: str
    source: str
    time: float


@dataclass(frozen=True, slots=True)
class Pending:
    """Requests as they lie there, oldest release first; `ignored`: files that are none, each with the reason."""

    requests: tuple[Request, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def releases(self) -> tuple[str, ...]:
        """Their releases."""
        return tuple(each.release for each in self.requests)


class Verdict(enum.Enum):
    """What one look at the requests came to. The values lie on disk: never renamed."""

    NOTHING = "nothing"  # no request that counts
    NOTIFIED = "notified"  # said so; a person acts
    PLANNED = "planned"  # a plan is stored; a person carries it out
    STAGED = "staged"  # prepared as far as it goes before the window
    REHEARSED = "rehearsed"  # tried in a virtual host
    STARTED = "started"  # the worker carries it out
    WAITS = "waits"  # not now
    REFUSED = "refused"  # not as things are: a person has to change something
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A request that was taken away, and why."""

    release: str
    why: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One look, or `count` of them that came to the same. Times: seconds since the epoch.

    `requested`: releases that lay there; `release`: the one that was chosen, if any; `next`: when it can go on by
    itself, None: not before something changes. `upgrade`, `plan`: what was begun or stored. `code`: the exit code.
    """

    time: float
    last: float
    mode: str
    verdict: Verdict
    why: str
    requested: tuple[str, ...] = ()
    release: str = ""
    next: float | None = None
    withdrawn: tuple[Withdrawn, ...] = ()
    ignored: tuple[str, ...] = ()
    upgrade: str = ""
    plan: str = ""
    code: int = 0
    count: int = 1

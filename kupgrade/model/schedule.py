"""When something may happen, and how far it goes by itself: windows, and the modes of the automation."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Day(enum.Enum):
    """A day of the week, as a policy writes it; in the order of datetime's weekday()."""

    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


@dataclass(frozen=True, slots=True)
class Window:
    """A recurring time in which the machine may be upgraded.

    It opens on each of `days` at `start` (minutes after midnight by the clocks of `time_zone`) and stays open for
    `length` seconds of real time, over midnight, the end of the week and a change of the clocks.
    """

    start: int
    length: float
    days: tuple[Day, ...] = tuple(Day)
    time_zone: str = "UTC"

    def __str__(self) -> str:
        days = "daily" if len(set(self.days)) == len(Day) else ",".join(day.value for day in self.days)
        return f"{days} {self.start // 60:02}:{self.start % 60:02} {self.time_zone} for {self.length / 60:g} min"


class Mode(enum.Enum):
    """What is done with a kernel that a package brought; each does what the ones before it tell, too."""

    NOTIFY = "notify"  # say so
    PLAN = "plan"  # store a plan, explained
    STAGE = "stage"  # prepare what disturbs nobody, go on in a window
    REHEARSE = "rehearse"  # try the two kernels in a virtual host
    APPLY = "apply"  # upgrade, in a window


@dataclass(frozen=True, slots=True)
class Automation:
    """What happens without a person. `with_users`: although somebody is logged in."""

    mode: Mode = Mode.NOTIFY
    with_users: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms an upgrade was begun; stands in its journal's first record.

    `automatic`: nobody asked for it at this moment. `at_once`: a person said that windows and inhibitors do not count.
    `hold`: it stops before the first step that the host would notice, until a NOTE record lets it go on.
    """

    automatic: bool = False
    at_once: bool = False
    hold: bool = False


ORDINARY = Terms()

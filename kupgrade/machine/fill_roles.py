"""Who of the three that fill memory plays which role, as their log says."""

from __future__ import annotations

import enum

from kupgrade.errors import KernelError
from kupgrade.kernel import proc
from kupgrade.machine.fill_log import Field, FillLog


class Role(enum.Enum):
    """Of one of the ring: where the log says who plays it, and since when."""

    SERVER = (Field.SERVER, Field.SERVER_SINCE)
    KEEPER = (Field.KEEPER, Field.KEEPER_SINCE)
    SPARE = (Field.SPARE, Field.SPARE_SINCE)

    @property
    def who(self) -> Field:
        """Its PID."""
        return self.value[0]

    @property
    def since(self) -> Field:
        """Its start time."""
        return self.value[1]


def lives(log: FillLog) -> bool:
    """Whether one of the ring is there: it puts the others in their places."""
    return any(plays(log, role) for role in Role)


def plays(log: FillLog, role: Role) -> bool:
    """Whether somebody plays a role."""
    pid, since = log[role.who], log[role.since]
    if not pid:
        return False
    try:
        found = proc.process(pid)
    except KernelError:
        return False
    return since in (0, found.starttime) and found.state not in "ZX"

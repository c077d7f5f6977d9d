"""Identifiers, validated on construction."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kupgrade.errors import BadInputError

_UPGRADE_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
_TICKET = re.compile(r"(?P<id>[^:]+):(?P<epoch>[0-9]{1,6})")

TICKET_PARAMETER = "kupgrade.ticket"


@dataclass(frozen=True, slots=True, order=True)
class UpgradeId:
    """One upgrade: UTC date, time and six random hex digits, e.g. 20261121-041503-9f2c1a; sorts by time."""

    text: str

    def __post_init__(self) -> None:
        if not _UPGRADE_ID.fullmatch(self.text):
            raise BadInputError(f"{self.text!r:.60} is not an upgrade ID", "expected YYYYMMDD-HHMMSS-xxxxxx")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Ticket:
    """The marker on a kernel command line that passes authority: upgrade ID and epoch."""

    upgrade: UpgradeId
    epoch: int

    def __str__(self) -> str:
        return f"{self.upgrade}:{self.epoch}"

    @property
    def parameter(self) -> str:
        """The command-line word, e.g. kupgrade.ticket=ID:2."""
        return f"{TICKET_PARAMETER}={self}"

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """Read ID:EPOCH; raises BadInputError."""
        match = _TICKET.fullmatch(text)
        if not match:
            raise BadInputError(f"{text!r:.60} is not a ticket", "expected ID:EPOCH")
        return cls(UpgradeId(match["id"]), int(match["epoch"]))

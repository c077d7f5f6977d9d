"""Stored descriptors on the modelled host: in the manager's store of this boot, with a process, or on their way."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kupgrade.model.descriptors import DescriptorStore, PreservePolicy, StoredDescriptor
from kupgrade.model.record import Record, RecordKind

if TYPE_CHECKING:
    from tests.fakes.machine import Machine

UNIT = "cron.service"
LABEL = f"{UNIT}: table"
STORE = DescriptorStore(
    UNIT, True, True, 8, "yes", held=2,
    descriptors=(StoredDescriptor("table", "memfd", 3 << 20), StoredDescriptor("wake", "eventfd")),
)  # fmt: skip
POLICY = PreservePolicy(UNIT)
RETURNED, LOST = "returned", "lost: no session of that name"


class Session(enum.Enum):
    """Where the session that carries them is."""

    NONE = "none"
    PROCESS = "process"  # held in this kernel
    COMING = "coming"  # handed over by the kernel before, fetched by nobody yet


class Stored:
    """The port, and what happens to it. `in_store`: the manager of this boot has them."""

    def __init__(self, machine: Machine, *, used: bool) -> None:
        self.m, self.used = machine, used
        self.in_store, self.session, self.mark = used, Session.NONE, ""

    @property
    def image(self) -> tuple[object, ...]:
        return self.in_store, self.session, self.mark

    # -- the port

    def running(self, units: Sequence[str]) -> Sequence[str]:
        return [unit for unit in units if unit in self.m.active]

    def hold(self, session: str, units: Sequence[str], strict: Sequence[str]) -> Mapping[str, str | int]:
        self.m.act("hold descriptors")
        if UNIT in self.m.active:
            self.m.violate("descriptors were held while their service runs")
        self.session = Session.PROCESS
        return {LABEL: "3145728 bytes"}

    def held(self, session: str) -> bool | None:
        self._die()
        return self.session is Session.PROCESS

    def let_go(self, session: str) -> None:
        self.m.act("let go of descriptors")
        if not self.in_store and not self.mark:
            self.m.violate("descriptors were let go of before anybody else had them")
        self.session = Session.NONE

    def give_back(self, session: str, expected: Sequence[str]) -> Mapping[str, str | int]:
        if not self.mark:
            self.fetch()
            if self.session is Session.PROCESS:
                self.m.act("return descriptors")
                self.in_store = True
                self.m.act("note what was returned")
                self.mark = RETURNED
            else:
                self.m.act("note what was lost")
                self.mark = LOST
        self.let_go(session)
        return dict.fromkeys(expected, self.mark)

    def given_back(self, session: str) -> bool:
        return bool(self.mark) and self.session is not Session.PROCESS

    # -- what happens

    def fetch(self) -> None:
        if self.session is Session.COMING:
            self.m.tick("fetch descriptors")
            self.session = Session.PROCESS

    def _die(self) -> None:
        """Its holder, at some time in the blackout of the first kernel."""
        if self.m.behaviour.descriptors_die and self.m.lock and self.m.boots == 1:
            self.session = Session.NONE

    def jumped(self) -> None:
        self._die()
        if self.used and (self.session is Session.COMING or (self.in_store and self.session is Session.NONE)):
            self.m.violate("jumped and left stored descriptors behind")
        came = self.session is Session.PROCESS and not (self.m.behaviour.drops_memory and self.m.boots == 1)
        self.in_store, self.mark, self.session = False, "", Session.COMING if came else Session.NONE

    def restarted(self) -> None:
        self.in_store, self.mark, self.session = False, "", Session.NONE

    def problems(self, records: Sequence[Record]) -> list[str]:
        """At the end, with what the journal says. A restart while nothing is held for a crossing is as any restart."""
        if not self.used:
            return []
        found = [] if self.session is Session.NONE else ["left behind: the session of stored descriptors"]
        hold = next(at for at, spec in enumerate(self.m.plan.steps) if spec.kind == "hold-descriptors")
        held = False
        for record in records:
            if record.step == hold:
                undone = record.kind is RecordKind.UNDONE and record.boot_id == self.m.plan.boot_id
                held = not undone
        words = {str(record.data.get(LABEL)) for record in records}
        if held and not self.in_store and not words & {RETURNED, LOST}:
            found.append("stored descriptors are gone and nobody said so")
        if not self.in_store and not self.m.excused:
            found.append("stored descriptors are gone and nothing excuses it")
        return found

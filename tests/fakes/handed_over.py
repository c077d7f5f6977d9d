"""Images that stay in memory over a kexec, in the modelled host: who holds them decides whether they live."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from kupgrade.errors import KupgradeError

if TYPE_CHECKING:
    from tests.fakes.machine import Machine


class Holder(enum.Enum):
    """What keeps the images that are in memory."""

    NAMES = "names"  # files of this kernel that have names, as a dump writes them
    WORKER = "worker"  # a session that the tool holds: it ends with the tool
    COMING = "coming"  # handed over by the kernel before, fetched by nobody yet
    PROCESS = "process"  # a process of their own, which has them in a session again


class HandedOver:
    """Nothing of it is used by a plan whose images lie on a disk."""

    def __init__(self, machine: Machine, *, used: bool) -> None:
        self.m, self.used, self.holder = machine, used, Holder.NAMES

    @property
    def visible(self) -> bool:
        """Whether the images have names in this kernel."""
        return not self.used or self.holder in (Holder.NAMES, Holder.PROCESS)

    def lose(self) -> None:
        """The images are gone; in a later kernel than the first one with them what the workloads were."""
        self.m.images.clear()
        self.m.rounds.clear()
        self.m.sealed_in = None
        self.holder = Holder.NAMES

    # -- what the tool does

    def preserve(self) -> None:
        self.m.act("preserve")
        self.holder = Holder.WORKER

    def preserved(self) -> bool:
        return self.holder in (Holder.WORKER, Holder.PROCESS)

    def take_back(self) -> None:
        self.m.act("take back what was preserved")
        if self.holder is Holder.WORKER:
            self.lose()

    def fetch(self) -> None:
        if self.used and self.holder is Holder.COMING:
            self.m.tick("fetch")
            self.holder = Holder.PROCESS
            self.m.store_made = self.m.mounted = True

    def check(self) -> None:
        """What a restore asks first."""
        if self.used and self.m.sealed_in is None:
            raise KupgradeError("The images did not come through the crossing")

    # -- what happens to the machine

    def killed(self) -> None:
        if self.used and self.holder is Holder.WORKER:
            self.lose()

    def jumped(self) -> None:
        if not self.used:
            return
        if self.preserved() and not (self.m.behaviour.drops_memory and self.m.boots == 1):
            self.holder = Holder.COMING
            return
        if self.m.images and self.m.behaviour.drops_memory:
            self._end_connections()
        self.lose()

    def restarted(self) -> None:
        """A power cut, a panic, a hang: the plan said what that costs."""
        if self.used:
            if self.m.images:
                self._end_connections()
            self.lose()
            self.m.store_made = False

    def _end_connections(self) -> None:
        self.m.excused = True
        self.m.connected = dict.fromkeys(self.m.connected, False)

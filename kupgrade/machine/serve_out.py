"""The old kernel after the commit: it watches, gives the rest when it is asked to, and ends.

Should the new kernel die now, or stand still, it is a crash of the host, and the machine is restarted, as nobody else
could do it. Nothing that goes wrong here may lead out of here: the way out is to fence, and that would stop the kernel
that serves.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from kupgrade.errors import KupgradeError
from kupgrade.machine import retirement
from kupgrade.machine.images import store_of
from kupgrade.machine.pulse import Pulse
from kupgrade.machine.spawn_watch import Watch
from kupgrade.machine.spawner import Spawner
from kupgrade.machine.standby_client import StandbyClient
from kupgrade.model import standby
from kupgrade.model.codec import decode
from kupgrade.model.handover import Stage, Standing
from kupgrade.model.machine import PciAddress
from kupgrade.model.spawn import Instance
from kupgrade.model.workload import Store

LATER_SEGMENT = 0x40  # of the buses that pass at the retirement
ASK_EVERY = 0.2  # seconds
ASK_TIMEOUT = 60.0
# Seconds without a heartbeat and without an answer. Before the commit little is lost when a slow kernel is taken for
# one that hangs; now every workload would be. The heartbeat is a process of ordinary priority, which an overloaded or
# emulated host may well keep waiting for ten seconds; this is far beyond.
HANG_LIMIT = 60.0
TRIES = 5  # of the retirement
RETRY = 5.0  # seconds from one that failed to the next, and twice as long after each


@dataclass
class ServeOut:
    """`end` restarts the machine; `say` writes to the kernel's log."""

    watch: Watch
    spawner: Spawner
    instance: Instance
    store: Store
    root: Path
    end: Callable[[Exception], NoReturn]
    say: Callable[[str], None]
    given: bool = False  # the buses have passed, or may have, by a worker that was killed
    remember: Callable[[bool], None] = lambda _given: None  # tells the worker after this one, if this one is killed
    pulse: Pulse = field(init=False)
    _wiped: bool = False
    _given: bool = False  # the buses have passed, or may have
    _tries: int = 0
    _again: float = 0.0

    def __post_init__(self) -> None:
        """The new kernel is given its whole time."""
        self.pulse = self.watch.pulse(HANG_LIMIT)
        self._given = self.given

    def run(self) -> NoReturn:
        """Until this kernel ends."""
        client = self.watch.client(self.pulse)
        while True:
            try:
                self._turn(client)
            except Exception as error:
                self.say(f"{type(error).__name__}: {error}")
                self._end_if_dead()
            time.sleep(ASK_EVERY)

    def _turn(self, client: StandbyClient) -> None:
        if not self._wiped:
            self._wiped = True
            store_of(self.store).wipe()
        found = decode(Standing, client.ask(standby.STAGE, ASK_TIMEOUT)["standing"], "standing")
        self.pulse.answered()
        if found.stage is Stage.RETIRE:
            self._retire(found.ports)

    def _end_if_dead(self) -> None:
        try:
            self.watch.check_alive()
            self.pulse.check()
        except KupgradeError as dead:
            with contextlib.suppress(KupgradeError):  # the restart stops all CPUs as well
                self.spawner.fence(self.instance)
            self.end(dead)

    def _retire(self, ports: Sequence[str]) -> None:
        """One try, if it is time for it: the new kernel asks as long as it waits."""
        if self._tries >= TRIES or time.monotonic() < self._again:
            return
        self._tries += 1
        named = [] if self._given else [PciAddress.parse(port) for port in ports]
        try:
            retirement.retire(
                self.spawner.device, self.instance, self.watch.client(), named, LATER_SEGMENT, self.root, self._told,
                self.remember,
            )  # fmt: skip
        except retirement.BusesGivenError:
            self._given = True
            raise
        finally:
            self._again = time.monotonic() + RETRY * 2 ** (self._tries - 1)

    def _told(self, part: str, seconds: float) -> None:
        self.say(f"passed on: {part}, {seconds:.3f} s")

"""Telling what goes on: the system's journal, the service manager, the metrics. Standard library only, and never fatal.

The watchdog of the worker's unit (WatchdogSec=) is for a worker that hangs while the workloads run: staging a kernel,
copying memory. Being killed there costs nothing, the next worker goes on from the journal. In the blackout it must
never kill: a dump, a restore or the watch over another kernel may rightly take minutes, and what guards them is the
deadline of the crossing, its dead-man timer and the hardware watchdog; a dump that stands still is ended by
host/criu_child.py. So `Heart` beats throughout the blackout, whatever the loop does, in steps that only wait, and else
for as long as the open step is not older than STEP_LIMIT.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.core.events import fields_of, stands_still, waits_rightly
from kupgrade.core.fold import fold
from kupgrade.core.standing import stage_of
from kupgrade.host import journald
from kupgrade.host.notify import notify, watchdog_seconds
from kupgrade.model.record import Record, RecordKind, State

Report = Callable[[Record, State], None]
STEP_LIMIT = 1800.0  # seconds; pre-dump rounds of a terabyte of memory stay below it
READY_PATIENCE = 30.0  # seconds; a manager that never hears it ends the worker after its start timeout
HELD = 500  # records, at most
_STACK = 256 << 10  # bytes of the heart's thread: it is locked in memory with the rest


@dataclass
class Heart:
    """When the worker was last heard of. `clock` as time.monotonic."""

    clock: Callable[[], float] = time.monotonic
    since: float = 0.0
    still: bool = False
    waits: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)

    def seen(self, state: State) -> None:
        """A record was written: the loop goes on."""
        self.since, self.still, self.waits = self.clock(), stands_still(state), waits_rightly(state)

    @property
    def well(self) -> bool:
        """Whether the manager may be told so."""
        return self.still or self.waits or self.clock() - self.since < STEP_LIMIT

    def start(self) -> bool:
        """Beat in a thread, three times as often as asked for; False when nobody asked."""
        wanted = watchdog_seconds()
        if wanted is None:
            return False
        self.since = self.clock()
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=self._run, args=(wanted / 3,), name="heart", daemon=True).start()
        finally:
            threading.stack_size(before)
        return True

    def stop(self) -> None:
        """No beat any more: the process is about to end."""
        self._stop.set()

    def _run(self, pause: float) -> None:
        while True:
            if self.well:
                notify(WATCHDOG=1)
            if self._stop.wait(pause):
                return


@dataclass
class Teller:
    """A watcher for the executor's loop. `otherwise`: prints a record where the journal does not have it.

    In the blackout of a boot nothing is sent: the first record would start the journal's daemon, which would take the
    processor from the restore. It is held until the workloads run; an agent whose output is the journal has it already.
    """

    otherwise: Report
    root: Path = Path("/")
    heart: Heart = field(default_factory=Heart)
    held: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, record: Record, state: State) -> None:
        """Tell one record."""
        self.heart.seen(state)
        fields = fields_of(record, state)
        stream = journald.is_stream()
        if not (self._send(fields, hold=self.heart.still and not stream) and stream):
            self.otherwise(record, state)
        notify(STATUS=f"{state.plan.new_release}: {stage_of(state).value}; {fields.get('MESSAGE', record.kind.value)}")
        if record.kind in (RecordKind.FINISHED, RecordKind.HANDS_OFF):
            self.heart.stop()

    def _send(self, fields: dict[str, str], *, hold: bool) -> bool:
        """To the journal, after those that were held or that it had no room for; whether it has this one."""
        if fields:
            self.held = [*self.held, fields][-HELD:]
        while not hold and self.held and journald.send(self.held[0], self.root):
            self.held.pop(0)
        return bool(fields) and not self.held


def in_blackout(records: Sequence[Record]) -> bool:
    """Whether the workloads do not run because of the upgrade with this journal."""
    return stands_still(fold(records))


def ready(text: str) -> None:
    """The worker is up: it holds the journal, or has found that there is nothing to do."""
    notify(READY_PATIENCE, READY=1, STATUS=text)


def starting(patience: float) -> None:
    """Ask for more time to start than the unit gives: a child of a killed predecessor is waited for (seconds)."""
    notify(EXTEND_TIMEOUT_USEC=int((patience + 30) * 1e6), STATUS="waits for what a predecessor left running")

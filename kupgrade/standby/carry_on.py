"""The upgrade goes on in a kernel that came up beside the old one: the same loop on the same journal."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from kupgrade import telling
from kupgrade.errors import ExitCode, NeedsHumanError
from kupgrade.machine import handover, host, new_root, passing_on, standing, takeover
from kupgrade.machine.places import Places
from kupgrade.model.handover import Stage
from kupgrade.model.record import Record, RecordKind, State
from kupgrade.statedir import StateDirectory

# Imported here, before the blackout, and not when the loop asks for them.
PRELOADED = (handover, takeover)
LOCK = "early.lock"  # the boot's own agent waits for it


def run() -> int:
    """Claim, restore, commit, and everything after it; the exit code. Raises KupgradeError.

    What goes wrong before the commit is told to the old kernel at once: undoing it here would only make the way back
    longer.
    """
    places = Places()
    states = StateDirectory(Path("/"))
    lock = os.open(places.run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    journal = states.open_current()
    if journal is None:
        raise NeedsHumanError("There is no open upgrade", "its journal is not on the root file system")
    journal.on_disk = new_root.merged() is not False  # until then it lies on a snapshot in memory

    def say(record: Record, state: State) -> None:
        step = "" if record.step is None else state.plan.steps[record.step].kind
        why = str(record.data.get("error") or record.data.get("reason") or "")
        level = "<3>" if record.kind in (RecordKind.FAILED, RecordKind.HANDS_OFF) else "<5>"  # of the kernel's log
        print(f"{level}kupgrade: {step} {record.kind.value} {why}".strip(), flush=True)  # noqa: T201

    tell = telling.Teller(say)  # the kernel's log; from the start of the system on the journal, too

    def watch(record: Record, state: State) -> None:
        tell(record, state)
        why = str(record.data.get("error") or record.data.get("reason") or "")
        if state.committed:
            journal.on_disk = True  # with the next record all are, before the first of them can come to the disk
            if standing.get(places).stage is Stage.TAKING:
                standing.put(places, Stage.COMMITTED)
        elif record.kind in (RecordKind.FAILED, RecordKind.HANDS_OFF, RecordKind.UNDO_REQUESTED):
            standing.fail(places, why or "a step failed")

    state = host.run(journal, root=Path("/"), watch=watch, leaves=passing_on.LEFT)
    passed_on = passing_on.left(state)
    if state.over:
        states.finish(state.plan.upgrade)
    if state.over or passed_on:
        standing.put(places, Stage.OVER)
        _tell_metrics()
    journal.close()
    if passed_on:
        passing_on.pass_on()
    elif state.over and state.committed:
        passing_on.look_again(places)
    os.close(lock)
    sys.stdout.flush()
    return ExitCode.NEEDS_HUMAN if state.hands_off else ExitCode.DONE


def _tell_metrics() -> None:
    """By the host's own files; what is missing in them does not end the upgrade, which is over."""
    try:
        from kupgrade import metrics
    except ImportError as error:
        wrong = str(error)
    else:
        wrong = metrics.write_quietly()
    if wrong:
        print(f"<5>kupgrade: {wrong}", flush=True)  # noqa: T201

"""The agent: goes on with an open upgrade, in this boot or in the next one.

`kupgrade-resume.service` starts it early in every boot while an upgrade is open, `kupgrade-apply.service` (--worker)
starts it in the old kernel. Both do the same: open the journal, decide, act. It imports only the standard library and
this package, because it must run before anything else is certain to be there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from kupgrade import telling
from kupgrade.errors import ExitCode, KupgradeError
from kupgrade.machine import host, passing_on
from kupgrade.machine.places import Places
from kupgrade.model.record import Record, RecordKind, State
from kupgrade.statedir import StateDirectory

_CRIU_PATIENCE = 60.0  # seconds: a criu of a killed predecessor finishes first
LOCK_PATIENCE = 10.0  # seconds


def main(argv: list[str]) -> int:
    """Go on with the open upgrade, if there is one; the exit code of its outcome."""
    worker, early = "--worker" in argv, "--early" in argv
    states = StateDirectory(Path("/"))
    teller = telling.Teller(_watcher(argv))
    try:
        if worker:
            telling.starting(_CRIU_PATIENCE + LOCK_PATIENCE)
        if early:
            make_writable()
        host.await_predecessors(_CRIU_PATIENCE)
        journal = states.open_current(LOCK_PATIENCE)
        if journal is None:
            telling.ready("no upgrade is open")
            return ExitCode.DONE
        telling.ready("goes on with the open upgrade")
        if worker:
            teller.heart.start()
            if not telling.in_blackout(journal.records):
                _tell_metrics()
        try:
            state = host.run(journal, root=Path("/"), watch=teller, leaves=() if worker else passing_on.LEFT)
        except Exception as error:  # whatever it is: see begin_again
            if worker and not (isinstance(error, KupgradeError) and error.code is not ExitCode.FAILED):
                begin_again(error)
            raise
        if state.over:
            states.finish(state.plan.upgrade)
            host.forget_rollback_request()
            journal.close()
            if state.committed:
                passing_on.look_again(Places())
        _tell_metrics()
        if not worker and passing_on.left(state):
            journal.close()
            passing_on.pass_on()
            return ExitCode.DONE
    except KupgradeError as error:
        print(f"kupgrade: {error}", file=sys.stderr)  # noqa: T201
        return int(error.code)
    if state.hands_off:
        print(f"kupgrade: hands off: {state.hands_off}", file=sys.stderr)  # noqa: T201
        return ExitCode.NEEDS_HUMAN
    # The unit must not look failed in a boot that did what it should; the outcome is in the journal.
    return ExitCode.DONE if worker or state.over else ExitCode.FAILED


def begin_again(error: Exception) -> None:
    """End by a signal, which has the worker started again: it goes on from the journal, or takes back what was begun.

    What a step raises is recorded and acted upon. This is what the loop itself met (a file in /proc that could not be
    read, a flush that failed), perhaps while the workloads stand still. systemd does not try for ever
    (StartLimitBurst=).
    """
    traceback.print_exception(error)
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def _tell_metrics() -> None:
    """Never in the blackout: whoever is to thaw the file systems must not wait for one of them.

    Imported late: the agent of a boot does without the policy until then.
    """
    from kupgrade import metrics

    if wrong := metrics.write_quietly():
        print(f"kupgrade: {wrong}", file=sys.stderr)  # noqa: T201


def _watcher(argv: list[str]) -> Callable[[Record, State], None]:
    """structlog for the worker, which runs on a whole system; plain lines for the agent of a boot."""
    if "--worker" not in argv and "--json" not in argv:
        return report
    try:
        from kupgrade import log
    except ImportError:
        return report
    return log.reporter(log.logger(json_lines="--json" in argv))


def make_writable() -> None:
    """Remount the root file system read-write where the boot has not come to that yet: the journal lies on it."""
    if os.statvfs("/").f_flag & os.ST_RDONLY:
        host.remount_root()


def report(record: Record, state: State) -> None:
    """One plain line a record, for the system's journal."""
    kind = record.kind.value
    if record.step is not None:
        kind = f"{state.plan.steps[record.step].kind}: {kind}"
    data = {k: v for k, v in record.data.items() if k not in ("plan", "digest")}
    if record.kind is RecordKind.STARTED:
        data = {}
    tail = f" {json.dumps(data)}" if data else ""
    print(f"[{record.uptime:9.3f}] {kind}{tail}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

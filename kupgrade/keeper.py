"""The keeper of an instance: the service that starts it, holds its guard while it runs, and takes it back.

A service and not a child of the shell: the guard lives as long as its descriptor of /dev/kspawn, so it must outlive the
command that started the instance. Killed, it is started again by systemd and goes on from the journal.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kupgrade.errors import ExitCode, KupgradeError
from kupgrade.host import command
from kupgrade.journal import write_durably
from kupgrade.machine import instances
from kupgrade.model.record import State
from kupgrade.resume import LOCK_PATIENCE, report
from kupgrade.statedir import StateDirectory

UNIT = "kupgrade-instance@{}.service"


def start(name: str, root: Path = Path("/")) -> bool:
    """Start the service without waiting for it; False when systemd does not run here. Raises KupgradeError."""
    if not (root / "run/systemd/system").is_dir():
        return False
    command.run(["systemctl", "reset-failed", UNIT.format(name)], check=False)
    command.run(["systemctl", "start", "--no-block", UNIT.format(name)])
    return True


def request_stop(name: str, root: Path, reason: str) -> None:
    """Ask the process that keeps it to take it back."""
    path = instances.request_of(name, root)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, reason.encode() + b"\n")


def clear_request(name: str, root: Path) -> None:
    """Forget an earlier wish, so that it does not end the next instance of that name."""
    instances.request_of(name, root).unlink(missing_ok=True)


def keep(name: str, root: Path = Path("/")) -> State | None:
    """Go on with the instance until it is over or needs a person; None: there is none. Raises KupgradeError."""
    states = StateDirectory(root).instance(name)
    journal = states.open_current(LOCK_PATIENCE)
    if journal is None:
        return None
    try:
        state = instances.run(journal, name, root=root, watch=report)
        if state.over:
            states.finish(state.plan.upgrade)
            clear_request(name, root)
        return state
    finally:
        journal.close()


def main(name: str) -> int:
    """As a service: its exit code."""
    try:
        state = keep(name)
    except KupgradeError as error:
        print(f"kupgrade: {error}", file=sys.stderr)  # noqa: T201
        return int(error.code)
    if state is not None and state.hands_off:
        print(f"kupgrade: hands off: {state.hands_off}", file=sys.stderr)  # noqa: T201
        return ExitCode.NEEDS_HUMAN
    return ExitCode.DONE

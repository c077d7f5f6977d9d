"""The worker: the service that carries out the open upgrade, so that a lost terminal stops nothing."""

from __future__ import annotations

import time
from pathlib import Path

from kupgrade.host import command
from kupgrade.journal import Journal, write_durably
from kupgrade.kernel.locks import holder
from kupgrade.model.record import Record, RecordKind, State

UNIT = "kupgrade-apply.service"
# The same place as kupgrade.machine.places names; the worker's loop reads it between steps.
REQUEST = "run/kupgrade/rollback-requested"


def start(root: Path = Path("/")) -> bool:
    """Start the worker without waiting for it; False when systemd does not run here. Raises KupgradeError."""
    if not (root / "run/systemd/system").is_dir():
        return False
    # After an earlier failure systemd may refuse to start the unit again; resetting has no other effect.
    command.run(["systemctl", "reset-failed", UNIT], check=False)
    command.run(["systemctl", "start", "--no-block", UNIT])
    return True


def at_work(journal: Path, root: Path = Path("/")) -> int | None:
    """The PID that works on `journal`, in the service or elsewhere; None when nobody does or it cannot be told."""
    return holder(journal, root)


def request_rollback(root: Path, reason: str) -> None:
    """Ask the worker at work to roll back."""
    path = root / REQUEST
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, reason.encode() + b"\n")


def clear_request(root: Path) -> None:
    """Forget an earlier wish, so that it does not end the next upgrade."""
    (root / REQUEST).unlink(missing_ok=True)


def record_wish(journal: Journal, state: State, boot_id: str, reason: str, by: str) -> None:
    """Append the wish to roll back to a journal that nobody works on; `state` is its fold."""
    journal.append(
        Record(
            seq=journal.next_seq,
            kind=RecordKind.UNDO_REQUESTED,
            boot_id=boot_id,
            epoch=state.epoch,
            time=round(time.time(), 6),
            uptime=round(time.clock_gettime(time.CLOCK_BOOTTIME), 6),
            data={"reason": reason, "by": by},
        )
    )

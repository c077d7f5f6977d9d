"""The worker: the service that carries out the open upgrade, so that a lost terminal stops nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kupgrade.host import command
from kupgrade.journal import Journal, write_durably
from kupgrade.kernel.locks import holder
from kupgrade.model.record import RELEASED, Record, RecordKind, State

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


def let_go(journal: Journal, state: State, boot_id: str, why: str, *, at_once: bool) -> None:
    """Append to a journal that nobody works on that its upgrade is not held any more; `state` is its fold."""
    data = {RELEASED: why, **({"at_once": True} if at_once else {})}
    journal.append(_record(journal, state, RecordKind.NOTE, boot_id, data))


def record_wish(journal: Journal, state: State, boot_id: str, reason: str, by: str) -> None:
    """Append the wish to roll back to a journal that nobody works on; `state` is its fold."""
    journal.append(_record(journal, state, RecordKind.UNDO_REQUESTED, boot_id, {"reason": reason, "by": by}))


def _record(journal: Journal, state: State, kind: RecordKind, boot_id: str, data: Mapping[str, Any]) -> Record:
    return Record(
        seq=journal.next_seq,
        kind=kind,
        boot_id=boot_id,
        epoch=state.epoch,
        time=round(time.time(), 6),
        uptime=round(time.clock_gettime(time.CLOCK_BOOTTIME), 6),
        data=data,
    )

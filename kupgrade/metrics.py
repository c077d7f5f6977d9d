"""The metrics of this host as a file for node_exporter's textfile collector: written aside, renamed into place."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from kupgrade import __version__
from kupgrade.core.chronicle import HistoryEntry
from kupgrade.core.metrics import Situation, metrics_text
from kupgrade.errors import KupgradeError
from kupgrade.host.durable import write_all
from kupgrade.policy import load
from kupgrade.statedir import StateDirectory

_MODE = 0o644  # the exporter is not root


def write(root: Path = Path("/")) -> Path | None:
    """Write the file that the policy names; None when it names none, or its directory is not there. Raises OSError.

    Raises KupgradeError for a policy or a state directory that cannot be read.
    """
    name = load(root).metrics.textfile
    path = root / name.lstrip("/")
    if not name or not path.parent.is_dir():
        return None
    history = StateDirectory(root).history()
    replace(path, metrics_text(history, _situation(history)).encode())
    return path


def _situation(history: tuple[HistoryEntry, ...]) -> Situation:
    outcomes = {entry.outcome for entry in history}
    hands_off = "hands-off" in outcomes
    return Situation(__version__, os.uname().release, hands_off or "open" in outcomes, hands_off)


def replace(path: Path, data: bytes) -> None:
    """Replace `path`. Its directory may be somebody else's: the name is not to be guessed, no link is followed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
    try:
        os.fchmod(fd, _MODE)
        write_all(fd, data)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(fd)


def write_quietly(root: Path = Path("/")) -> str:
    """As `write`, but what goes wrong is returned as text: no upgrade fails for its metrics."""
    try:
        write(root)
    except (KupgradeError, OSError) as error:
        return f"the metrics were not written: {error}"
    return ""

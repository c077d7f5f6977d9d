"""Directories that are root's alone: whoever can write there decides what runs, or reads what is secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.journal import sync_directory

MODE = 0o700


def make(path: Path) -> None:
    """Make it, durably, if it is not there. Raises as `check`."""
    if not os.path.lexists(path):
        path.mkdir(MODE, parents=True, exist_ok=True)
        sync_directory(path.parent)
    check(path)


def check(path: Path) -> None:
    """Raises BadInputError for one that others own or can get at, OSError when it is not there."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise BadInputError(f"{path} is not a directory", "it was replaced", "Find out by whom before you go on")
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid != os.geteuid() or mode & 0o077:
        raise BadInputError(
            f"{path} is not root's alone",
            f"owner {info.st_uid}, mode {mode:04o}",
            f"Find out who wrote there, then: chown root {path}; chmod 700 {path}",
        )

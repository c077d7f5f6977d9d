"""systemd-logind, through busctl and loginctl: who holds up a shutdown, and who is logged in.

Both leave files in /run (/run/systemd/inhibit, /run/systemd/sessions): where there are none nobody has to be asked, and
a host without logind has neither. ABI: org.freedesktop.login1(5), ListInhibitors a(ssssuu), ListSessions a(susso).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError, ToolError
from kupgrade.host import command
from kupgrade.host.systemd import parse_show

_TIMEOUT = 10.0  # seconds
_TRIES = 3
_CALL = ("busctl", "--json=short", "call", "org.freedesktop.login1", "/org/freedesktop/login1")
_MANAGER = "org.freedesktop.login1.Manager"
_HELD_UP = frozenset(("shutdown", "sleep"))
# block-weak: against everybody but root and the user's own processes (systemd 257).
_BLOCKS = ("block", "block-weak")


def inhibitors(root: Path = Path("/")) -> tuple[str, ...]:
    """Who blocks a shutdown or sleep, and why; a delay blocks nothing. Raises KupgradeError when it cannot be told."""
    if not _any_file(root / "run/systemd/inhibit"):
        return ()
    return inhibitors_of(command.run([*_CALL, _MANAGER, "ListInhibitors"], timeout=_TIMEOUT).stdout)


def inhibitors_of(text: str) -> tuple[str, ...]:
    """As `inhibitors`, from what busctl prints."""
    found = []
    for row in _rows(text, 6):
        what, who, why, mode = (str(each) for each in row[:4])
        if mode in _BLOCKS and _HELD_UP & set(what.split(":")):
            found.append(f"{who} ({why})" if why else who)
    return tuple(found)


def users(root: Path = Path("/")) -> tuple[str, ...]:
    """Names of those who have a session of their own. Raises KupgradeError when it cannot be told."""
    for left in reversed(range(_TRIES)):
        try:
            return _users(root)
        except ToolError:  # of a session that ended after it was listed, as those of cron do at any time
            if not left:
                raise
    return ()


def _users(root: Path) -> tuple[str, ...]:
    if not _any_file(root / "run/systemd/sessions"):
        return ()
    listed = command.run([*_CALL, _MANAGER, "ListSessions"], timeout=_TIMEOUT).stdout
    sessions = [str(row[0]) for row in _rows(listed, 5)]
    if not sessions:
        return ()
    show = ["loginctl", "show-session", *sessions, "--property=Name", "--property=Class", "--property=State"]
    return users_of(command.run(show, timeout=_TIMEOUT).stdout)


def users_of(text: str) -> tuple[str, ...]:
    """As `users`, from what loginctl show-session prints: one block of lines a session."""
    names = set()
    for block in text.split("\n\n"):
        session = parse_show(block)
        # Greeters, lock screens, cron's and user managers' sessions are nobody's; one that closes has nobody any more.
        if session.get("Class", "").startswith("user") and session.get("State") in ("active", "online"):
            names.add(session.get("Name") or "somebody")
    return tuple(sorted(names))


def _any_file(directory: Path) -> bool:
    try:
        return any(True for _ in directory.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KupgradeError(f"{directory} cannot be read", error.strerror or "") from error


def _rows(text: str, width: int) -> list[list[Any]]:
    """The structures of a reply whose one value is a list of them."""
    try:
        (rows,) = json.loads(text)["data"]
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == width for row in rows):
            raise ValueError("not a list of structures")
        return rows
    except (ValueError, KeyError, TypeError) as error:
        raise KupgradeError("logind's answer makes no sense", f"{error}: {text!r:.60}") from error

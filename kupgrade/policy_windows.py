"""The windows of a policy: `[[window]]` tables, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kupgrade.core.windows import LONGEST, zone
from kupgrade.model.schedule import Day, Window
from kupgrade.policy_checks import Check, KeyProblem, bad, list_of, one_of, span

# The timer looks every ten minutes, give or take four (packaging/systemd/kupgrade-request.timer).
SHORTEST = 900.0
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def _start(value: Any) -> int:
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise bad(f"found {value!r:.40}", 'Write a time of day, hours and minutes, e.g. "02:30"')
    return int(match[1]) * 60 + int(match[2])


def _length(value: Any) -> float:
    result = span(value)
    if not SHORTEST <= result <= LONGEST:
        raise bad(f"{value!r:.40} is not between 15 minutes and 7 days", 'Write it as "2h"; no window: always open')
    return result


def _zone(value: Any) -> str:
    remedy = 'Write an IANA name, e.g. "Europe/Berlin", or "UTC"; the package tzdata has to be installed'
    if not isinstance(value, str):
        raise bad(f"found {value!r:.40}", remedy)
    try:
        zone(value)
    except (ValueError, KeyError, OSError):
        raise bad(f"the time zone {value!r:.60} is not known here", remedy) from None
    return value


_WINDOW: Mapping[str, Check] = {
    "days": list_of(one_of(Day), 1),
    "start": _start,
    "length": _length,
    "time_zone": _zone,
}


def windows(table: Mapping[str, Any]) -> tuple[Window, ...]:
    """The windows of a policy's table; raises KeyProblem, with the window's number from 1 as part of the key."""
    found = table.get("window", [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise KeyProblem(("window",), "it is not a list of tables", "Write each below its own [[window]]")
    return tuple(_window(entry, ("window", str(number))) for number, entry in enumerate(found, 1))


def _window(entry: Mapping[str, Any], where: tuple[str, ...]) -> Window:
    values = {}
    for key, value in entry.items():
        if key not in _WINDOW:
            raise KeyProblem((*where, key), "no such key", f"Known here: {', '.join(sorted(_WINDOW))}")
        try:
            values[key] = _WINDOW[key](value)
        except KeyProblem as problem:
            raise KeyProblem((*where, key), problem.why, problem.remedy) from None
    for key, example in (("start", '"02:00"'), ("length", '"2h"')):
        if key not in values:
            raise KeyProblem((*where, key), "a window needs it", f"Write {key} = {example}")
    return Window(**values)

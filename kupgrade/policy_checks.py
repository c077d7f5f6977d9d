"""What the value of one key of a policy may be: checks that convert it, or say what to write instead."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kupgrade.errors import BadInputError
from kupgrade.model.policy import seconds

_WEEK = 7 * 86400.0  # seconds; poll(2) takes no more than 24 days, sleep(1) in an initrd not even all of that
_YEAR = 366 * 86400.0
_INTEGERS = range(-(1 << 63), 1 << 63)  # TOML's; Python's have no end, and not all of them can be printed

Check = Callable[[Any], Any]
E = TypeVar("E", bound=enum.Enum)


class KeyProblem(Exception):  # noqa: N818 - never leaves the policy loader, which turns it into a BadInputError
    """A key that cannot be used: its path, why, and what to write instead."""

    def __init__(self, key: tuple[str, ...], why: str, remedy: str) -> None:
        super().__init__(why)
        self.key, self.why, self.remedy = key, why, remedy


def bad(why: str, remedy: str) -> KeyProblem:
    """A problem whose key its caller knows."""
    return KeyProblem((), why, remedy)


def check_numbers(value: Any, key: tuple[str, ...] = ()) -> None:
    """Refuse integers that TOML does not have, wherever they stand; raises KeyProblem."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            check_numbers(each, (*key, name))
    elif isinstance(value, list):
        for each in value:
            check_numbers(each, key)
    elif isinstance(value, int) and value not in _INTEGERS:
        raise KeyProblem(key, "the number is too large", "Write one of 64 bits at most")


def span_or_none(value: Any) -> float:
    """Seconds, up to a year; 0 stands for none."""
    return 0.0 if value in (0, "0", "0s") and not isinstance(value, bool) else _seconds(value, _YEAR)


def deadline(value: Any) -> float:
    """Seconds, at least one: the dead-man of the new kernel counts whole ones, and 0 would be none."""
    result = span(value)
    if result < 1:
        raise bad(f"{value!r:.40} is less than 1 second", 'Write it as "60s" or "2min"')
    return result


def span(value: Any) -> float:
    """Seconds, more than 0, from a number or a time span of systemd's; up to a week."""
    return _seconds(value, _WEEK)


def _seconds(value: Any, most: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        result = float(value)
    elif isinstance(value, str):
        try:
            result = seconds(value)
        except BadInputError as error:
            raise bad(error.what, error.remedy) from None
    else:
        raise bad(f"{value!r:.40} is not a time span", 'Write it as "30s", "500ms" or "1min 30s"')
    if not math.isfinite(result) or result <= 0:
        raise bad(f"{value!r:.40} is not a positive time", "Leave the key out for the default")
    if result > most:
        raise bad(f"{value!r:.40} is more than {most / 86400:g} days", "Write a shorter time")
    return result


def whole(low: int, high: int) -> Check:
    """A whole number between the two, both included."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise bad(f"found {value!r:.40}", f"Write a whole number from {low} to {high}")
        return value

    return check


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise bad(f"found {value!r:.40}", "Write true or false, without quotes")
    return value


def one_of(kind: type[E], *but: E) -> Callable[[Any], E]:
    """A member of `kind`, other than those of `but`: they are chosen by other means."""
    known = {member.value: member for member in kind if member not in but}

    def check(value: Any) -> E:
        try:
            return known[value]
        except (KeyError, TypeError):
            choices = ", ".join(f'"{name}"' for name in known)
            raise bad(f"found {value!r:.40}", f"Write one of {choices}") from None

    return check


def text(pattern: re.Pattern[str], expected: str) -> Check:
    """A text that the pattern matches; `expected` says which in words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise bad(f"found {value!r:.60}", f"Write {expected}")
        return value

    return check


def list_of(item: Check, least: int = 0) -> Check:
    """A list of at least so many."""

    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < least:
            raise bad(f"found {value!r:.40}", f"Write a list of {least} or more" if least else "Write a list")
        return tuple(item(entry) for entry in value)

    return check


_BYTES = re.compile(r"([0-9]{1,12}) ?(?:([KMGT])(?:iB)?)?")


def size(value: Any) -> int:
    """A number of bytes, or text with a binary unit: "512MiB", "2G"."""
    match = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if match:
        value = int(match[1]) << (10 * (" KMGT".index(match[2]) if match[2] else 0))
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 50:
        raise bad(f"found {value!r:.40}", 'Write it as "512MiB" or "2GiB", 0 for what is computed')
    return value

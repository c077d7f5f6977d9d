"""Reads errata: those of this package, and drop-ins of the host; every error with file, line, key and remedy.

Drop-ins lie in /usr/lib, /run and /etc (each `kupgrade/errata.d/*.toml`), by the rules of the policy. An entry with the
`id` of an earlier one replaces it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kupgrade.errors import BadInputError
from kupgrade.model.erratum import Erratum, Match, Severity, VersionRange
from kupgrade.policy import Fragment, parse, read_fragments

LAYERS = ("usr/lib/kupgrade/errata.d", "run/kupgrade/errata.d", "etc/kupgrade/errata.d")
OWN = Path(__file__).parent
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{2,60}")
_PCI = re.compile(r"[0-9a-f*?]{1,4}:[0-9a-f*?]{1,4}")
_URL = re.compile(r"https://[^\s\"<>]{8,300}")
Check = Callable[[Any], Any]


class _Problem(Exception):  # noqa: N818 - never leaves this module, which turns it into a BadInputError
    """A key that cannot be used: its path in its table, why, and what to write."""

    def __init__(self, key: tuple[str, ...], why: str, remedy: str) -> None:
        super().__init__(why)
        self.key, self.why, self.remedy = key, why, remedy


def load(root: Path = Path("/")) -> tuple[Erratum, ...]:
    """All that count, sorted by `id`. Raises BadInputError."""
    own = tuple(parse(path, path.read_bytes()) for path in sorted(OWN.glob("*.toml")))
    found: dict[str, Erratum] = {}
    for fragment in (*own, *read_fragments(root, LAYERS)):
        here = read(fragment)
        found |= {each.id: each for each in here}
    return tuple(found[name] for name in sorted(found))


def read(fragment: Fragment) -> tuple[Erratum, ...]:
    """The entries of one file. Raises BadInputError."""
    unknown = sorted(set(fragment.table) - {"erratum"})
    entries = fragment.table.get("erratum", [])
    if unknown or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        key = unknown[0] if unknown else "erratum"
        raise _blame(fragment, 0, _Problem((key,), "it is no list of entries", "Write each below its own [[erratum]]"))
    found: dict[str, Erratum] = {}
    for number, entry in enumerate(entries, 1):
        try:
            erratum = _entry(entry, str(fragment.path))
            if erratum.id in found:
                raise _Problem(("id",), f"{erratum.id} is used twice in this file", "Give each its own")
        except _Problem as problem:
            raise _blame(fragment, number, problem) from None
        found[erratum.id] = erratum
    return tuple(found.values())


def _entry(table: Mapping[str, Any], place: str) -> Erratum:
    values = _values(table, _ENTRY, ())
    for key in _ENTRY:
        if key not in values:
            raise _Problem((key,), "it is missing", f"Every entry has {', '.join(_ENTRY)}")
    return Erratum(**values, place=place)


def _values(table: Mapping[str, Any], checks: Mapping[str, Check], where: tuple[str, ...]) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        if key not in checks:
            raise _Problem((*where, key), "no such key", f"Known here: {', '.join(sorted(checks))}")
        try:
            values[key] = checks[key](value)
        except _Problem as problem:
            raise _Problem((*where, key, *problem.key), problem.why, problem.remedy) from None
    return values


def _text(pattern: re.Pattern[str], expected: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _Problem((), f"found {value!r:.60}", f"Write {expected}")
        return value

    return check


def _list(item: Check) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise _Problem((), f"found {value!r:.40}", "Write a list of one or more")
        return tuple(item(each) for each in value)

    return check


def _table(value_check: Check) -> Check:
    def check(value: Any) -> Mapping[str, str]:
        if not isinstance(value, dict) or not value:
            raise _Problem((), f"found {value!r:.40}", 'Write a table: { NAME = "value" }')
        return {str(name): value_check(each) for name, each in value.items()}

    return check


def _range(value: Any) -> VersionRange:
    try:
        return VersionRange.parse(value if isinstance(value, str) else repr(value))
    except BadInputError as error:
        raise _Problem((), error.what, error.remedy) from None


def _severity(value: Any) -> Severity:
    try:
        return Severity(value)
    except ValueError:
        raise _Problem((), f"found {value!r:.40}", 'Write "refuse" or "warn"') from None


def _match(value: Any) -> Match:
    if not isinstance(value, dict) or not value:
        raise _Problem((), "it matches everything", "Name at least one condition, below [erratum.match]")
    return Match(**_values(value, _MATCH, ()))


_line = _text(re.compile(r"[^\0\n]{3,600}"), "a text of one line, in quotes")
_word = _text(re.compile(r"[^\0\n\s]{1,100}"), "a word, in quotes")
_MATCH: Mapping[str, Check] = {
    **dict.fromkeys(("criu", "running", "target", "either"), _range),
    "engine": _text(re.compile("kexec|spawn"), '"kexec" or "spawn"'),
    **dict.fromkeys(("architecture", "cpu_vendor", "hypervisor", "modules", "cmdline", "descriptors"), _list(_word)),
    "pci": _list(_text(_PCI, 'VENDOR:DEVICE in lower-case hex, or a glob of such, e.g. "8086:4e6?"')),
    "sysctl": _table(_word),
    "config": _table(_text(re.compile(r'y|m|n|"[^"]*"|-?[0-9a-fx]+'), '"y", "m", "n" or a value')),
}
_ENTRY: Mapping[str, Check] = {
    "id": _text(_ID, "lower-case letters, digits, - and ."),
    "severity": _severity,
    "match": _match,
    "consequence": _line,
    "remedy": _line,
    "sources": _list(_text(_URL, "the address of a public issue, commit or document (https://…)")),
}


def _blame(fragment: Fragment, number: int, problem: _Problem) -> BadInputError:
    line = _find_line(fragment.text, number, problem.key)
    place = f"{fragment.path}, line {line}" if line else str(fragment.path)
    return BadInputError(f"{place}: {'.'.join(problem.key)} is not usable", problem.why, problem.remedy)


def _find_line(text: str, number: int, key: tuple[str, ...]) -> int:
    """The line of `key` in the entry with this number (from 1; 0: outside of all), else the entry's first line."""
    entry, begun, section = 0, 0, ""
    for at, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if words.startswith("[["):
            entry, section = entry + 1, ""
            begun = at if entry == number else begun
        elif words.startswith("["):
            section = words.strip("[] ").removeprefix("erratum.")
            begun = at if entry == number and key[:1] == (section,) else begun
        name = words.partition("=")[0].strip().strip("\"'")
        path = tuple(filter(None, (*section.split("."), *name.split("."))))
        if entry == number and "=" in words and path and path == key[: len(path)] and len(path) >= min(len(key), 1):
            if len(path) == len(key):
                return at
            begun = at
    return begun

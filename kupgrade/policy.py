"""Reads the policy: TOML drop-ins, merged, checked key by key, every error with file, line, key and remedy.

Layers, lowest first: /usr/lib, /run, /etc (each `kupgrade/policy.d/*.toml`). Files are merged in the order of
their names; one of the same name in a higher layer masks the lower one, a link to /dev/null masks it whole. Tables,
workloads of one name and what is preserved of one unit merge; windows do not: those of the last file that has any (or
`window = []`) replace the others.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kupgrade.errors import BadInputError
from kupgrade.model.policy import Policy
from kupgrade.policy_checks import KeyProblem, check_numbers
from kupgrade.policy_schema import build, check_shape

T = TypeVar("T")

LAYERS = ("usr/lib/kupgrade/policy.d", "run/kupgrade/policy.d", "etc/kupgrade/policy.d")
_LARGEST = 1 << 20  # bytes; a policy is a page of text
_IDENTITY = ("unit", "pidfile", "cgroup")
_NAMED = {"workload": "name", "preserve": "unit"}  # lists of tables, and the key that says which one is meant


@dataclass(frozen=True, slots=True)
class Fragment:
    """One drop-in: where it lies, its text, its parsed table."""

    path: Path
    text: str
    table: Mapping[str, Any]


def load(root: Path = Path("/")) -> Policy:
    """The merged policy below `root`; the built-in defaults without any drop-in. Raises BadInputError."""
    return merge(read_fragments(root))


def merge(fragments: tuple[Fragment, ...]) -> Policy:
    """The policy that `fragments` (lowest first) make; raises BadInputError naming the file at fault."""
    merged: dict[str, Any] = {}
    for fragment in fragments:
        _blame((fragment,), check_numbers, fragment.table)
        _blame((fragment,), check_shape, fragment.table)
        merged = _merge_tables(merged, fragment.table)
    return _blame(fragments, build, merged)


def read_fragments(root: Path = Path("/"), layers: tuple[str, ...] = LAYERS) -> tuple[Fragment, ...]:
    """All drop-ins that count, in the order in which they are merged."""
    return tuple(_read(path) for path in drop_ins(root, layers))


def drop_ins(root: Path, layers: tuple[str, ...] = LAYERS) -> tuple[Path, ...]:
    """The files that count: by name, the highest layer's version, without the masked ones."""
    chosen: dict[str, Path] = {}
    try:
        for layer in layers:
            if not _there(root / layer):
                continue
            _check_directory(root, layer)
            for path in (root / layer).iterdir():
                if path.suffix == ".toml" and not path.name.startswith("."):
                    chosen[path.name] = path
        return tuple(chosen[name] for name in sorted(chosen) if not _masked(chosen[name]))
    except OSError as error:
        raise BadInputError(
            f"{error.filename} cannot be read", error.strerror or "", "Repair it, or be root"
        ) from error


def _there(path: Path) -> bool:
    """Whether anything is called that, be it a link to nowhere. Raises OSError where that cannot be told."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _masked(path: Path) -> bool:
    return path.is_symlink() and os.path.realpath(path) == "/dev/null"


def _check_directory(root: Path, layer: str) -> None:
    """Every directory on the way below `root` must be ours alone, or somebody could slip a file in."""
    path = root
    for part in Path(layer).parts:
        path /= part
        if not path.is_dir():
            # Not the same as none: a link may lead to what is not mounted.
            raise BadInputError(f"{path} is not a directory", "policies may be hidden by it", "Repair or remove it")
        if path.is_symlink():
            _check_link(path)
        _check_owner(path, path.stat())


def _check_owner(path: Path, info: os.stat_result) -> None:
    # An unprivileged caller (policy check) may also use files of its own: they give nobody more than it has.
    if info.st_uid not in {0, os.geteuid()}:
        raise BadInputError(
            f"{path} does not belong to root",
            f"its owner is user {info.st_uid}",
            f"Inspect it, then: chown root {path}",
        )
    if stat.S_IMODE(info.st_mode) & 0o022:
        raise BadInputError(
            f"{path} could have been written by others",
            f"its mode is {stat.S_IMODE(info.st_mode):04o}",
            f"Inspect it, then: chmod go-w {path}",
        )


def _check_link(path: Path) -> Path:
    """The file behind a link; whoever can rename a directory on the way could swap the file."""
    target = Path(os.path.realpath(path))
    for parent in target.parents:
        try:
            info = parent.stat()
        except OSError as error:
            why = f"{parent}: {error.strerror}"
            raise BadInputError(f"{path} leads nowhere", why, "Repair or remove it") from error
        if not info.st_mode & stat.S_ISVTX:
            _check_owner(parent, info)
    return target


def _read(path: Path) -> Fragment:
    target = _check_link(path) if path.is_symlink() else path
    try:
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read", error.strerror or "", "Repair or remove it") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise BadInputError(f"{path} is not a regular file", "", "A policy is a text file; remove it")
        _check_owner(path, info)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(_LARGEST + 1)
    finally:
        os.close(fd)
    if len(data) > _LARGEST:
        raise BadInputError(f"{path} is too long for a policy", f"over {_LARGEST} bytes", "Remove it")
    return parse(path, data)


def parse(path: Path, data: bytes) -> Fragment:
    """One drop-in's bytes; raises BadInputError."""
    try:
        text = data.decode()
        return Fragment(path, text, tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise BadInputError(f"{path} is not valid TOML", str(error), "Correct it") from error


def _merge_tables(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        if key in _NAMED and isinstance(value, list):
            merged[key] = _merge_named(merged.get(key, []), value, _NAMED[key])
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge_tables(merged[key], value)
        else:
            merged[key] = value
    return merged


def _merge_named(low: list[dict[str, Any]], high: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    by_name = {entry[name]: entry for entry in low}
    for entry in high:
        old = by_name.get(entry[name], {})
        if any(key in entry for key in _IDENTITY):
            # Found another way now: the old way must not stand beside it.
            old = {key: value for key, value in old.items() if key not in _IDENTITY}
        by_name[entry[name]] = _merge_tables(old, entry)
    return list(by_name.values())


def _blame(fragments: tuple[Fragment, ...], check: Callable[[Mapping[str, Any]], T], table: Mapping[str, Any]) -> T:
    """Run `check`; a problem with a key becomes an error naming the last file and line that set the key."""
    try:
        return check(table)
    except KeyProblem as problem:
        place = ""
        for fragment in reversed(fragments):
            line = find_line(fragment.text, problem.key)
            if line or len(fragments) == 1:
                place = f"{fragment.path}, line {line}: " if line else f"{fragment.path}: "
                break
        key = ".".join(problem.key)
        raise BadInputError(f"{place}{key} is not usable", problem.why, problem.remedy) from None


def find_line(text: str, key: tuple[str, ...]) -> int:
    """The line that sets `key`, or its table's line; 0 when not found.

    A workload is named by its name, what is preserved by its unit, a window by its number in the file.
    """
    section: tuple[str, ...] = ()
    table_line = windows = 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if words.startswith("["):
            section = _section(words, section, text.splitlines()[number:])
            if section == ("window",) and words.startswith("[["):
                windows += 1
                section = ("window", str(windows))
            if section == key[: len(section)] and len(section) >= len(key) - 1:
                table_line = number
        elif "=" in words and not words.startswith("#"):
            name = tuple(part.strip().strip("\"'") for part in words.split("=", 1)[0].split("."))
            if (*section, *name) == key:
                return number
            if not section and name == ("window",) == key[:1]:
                table_line = number  # written on one line, without a table of its own
    return table_line


def _section(header: str, before: tuple[str, ...], rest: list[str]) -> tuple[str, ...]:
    """The key path of a table header; `[[workload]]` and its like take the name that follows in the table."""
    parts = tuple(part.strip().strip("\"'") for part in header.strip("[]# ").split("]")[0].split("."))
    if parts[0] not in _NAMED:
        return parts
    if header.startswith("[["):
        for line in rest:
            if line.strip().startswith("["):
                break
            if line.split("=")[0].strip() == _NAMED[parts[0]] and "=" in line:
                return (parts[0], line.split("=", 1)[1].split("#")[0].strip().strip("\"'"))
        return (parts[0], "")
    return (*before[:2], *parts[1:])

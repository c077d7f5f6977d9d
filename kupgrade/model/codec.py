"""Frozen dataclasses to JSON values and back, strictly: a journal on disk is read by another release of the tool.

Standard library only, because the agent in the new kernel runs before anything else is certain to be there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from kupgrade.errors import BadInputError

T = TypeVar("T")


def encode(value: object) -> Any:
    """`value` (dataclass, enum, tuple, mapping or JSON scalar) as plain JSON values.

    Raises TypeError for anything else: a programming error, never an operator's.
    """
    if type(value) in _PLAIN:  # most of all values, and asked fastest
        return value
    match value:
        case None | bool() | int() | float() | str() if not isinstance(value, enum.Enum):
            return value
        case enum.Enum():
            return value.value
        case tuple() | list():
            return [encode(item) for item in value]
        case Mapping():
            return {str(key): encode(item) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {name: encode(getattr(value, name)) for name in _names(type(value))}
    raise TypeError(f"cannot encode {type(value).__name__}")


_PLAIN = frozenset((type(None), bool, int, float, str))


@functools.cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def learn(kind: Any) -> None:
    """Look at everything that decoding a `kind` has to know, ahead of time: `decode` is much faster then."""
    for part in get_args(kind):
        learn(part)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in _learned:
        _learned.add(kind)
        _fields(kind)
        for hint in _hints(kind).values():
            learn(hint)


_learned: set[type] = set()


def decode(cls: type[T], data: object, where: str = "$") -> T:
    """Build a `cls` from JSON values; `where` names the place in messages.

    Raises BadInputError for a wrong type, a missing field or an unknown one.
    """
    try:
        result: T = _reader(cls)(data)
    except _MisfitError as misfit:
        raise BadInputError(f"Stored data is not as expected at {where}{misfit.place}", misfit.why) from None
    return result


# What reads one kind of value. Made once for each field of a class: looking at a type hint takes longer than reading.
_Reader = Callable[[Any], Any]


class _MisfitError(Exception):
    """A value that is not of its kind; `place` grows on its way out of what the value is in."""

    def __init__(self, why: str, place: str = "") -> None:
        super().__init__(why)
        self.why, self.place = why, place

    def within(self, place: str) -> _MisfitError:
        self.place = place + self.place
        return self


def _wrong(expected: str, data: object, place: str = "") -> _MisfitError:
    return _MisfitError(f"expected {expected}, found {data!r:.60}", place)


def _named(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _reader(kind: Any) -> _Reader:
    origin = get_origin(kind)
    if kind is Any or kind is object:
        return lambda data: data
    if origin in (Union, types.UnionType):
        return _union_reader(get_args(kind))
    if origin is tuple:
        return _tuple_reader(get_args(kind))
    if origin in (dict, Mapping) or origin is getattr(typing, "Mapping", None):
        return _mapping_reader(get_args(kind)[1])
    if dataclasses.is_dataclass(kind):
        return functools.partial(_read_dataclass, typing.cast(type, kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum_reader(kind)
    return _scalar_reader(kind)


def _scalar_reader(kind: Any) -> _Reader:
    known = kind if isinstance(kind, type) else ()

    def read(data: Any) -> Any:
        if isinstance(data, known) and not (kind is int and isinstance(data, bool)):
            return data
        raise _wrong(_named(kind), data)

    return _read_float if kind is float else read


def _read_float(data: Any) -> float:
    """A number: a deadline that is none, or endless, would never be over."""
    if isinstance(data, int | float) and not isinstance(data, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(number := float(data)):
                return number
    raise _wrong("float", data)


def _enum_reader(kind: type[enum.Enum]) -> _Reader:
    def read(data: Any) -> Any:
        try:
            return kind(data)
        except ValueError:
            raise _wrong(" or ".join(repr(m.value) for m in kind), data) from None

    return read


def _union_reader(options: tuple[Any, ...]) -> _Reader:
    optional = type(None) in options
    readers = tuple(_reader(option) for option in options if option is not type(None))

    def read(data: Any) -> Any:
        if data is None and optional:
            return None
        for each in readers:
            try:
                return each(data)
            except (_MisfitError, BadInputError):
                continue
        raise _wrong(" or ".join(map(_named, options)), data)

    return read


def _mapping_reader(item: Any) -> _Reader:
    read_item = _reader(item)

    def read(data: Any) -> Any:
        if not isinstance(data, dict):
            raise _wrong("an object", data)
        found = {}
        for key, value in data.items():
            try:
                found[str(key)] = read_item(value)
            except _MisfitError as misfit:
                raise misfit.within(f".{key}")  # noqa: B904 - the same one, further out
        return found

    return read


def _tuple_reader(items: tuple[Any, ...]) -> _Reader:
    any_length = len(items) == 2 and items[1] is Ellipsis
    readers = tuple(_reader(item) for item in items if item is not Ellipsis)

    def read(data: Any) -> Any:
        if not isinstance(data, list | tuple):
            raise _wrong("a list", data)
        if not any_length and len(readers) != len(data):
            raise _wrong(f"{len(readers)} values", data)
        found = []
        for at, value in enumerate(data):
            try:
                found.append(readers[0 if any_length else at](value))
            except _MisfitError as misfit:
                raise misfit.within(f"[{at}]")  # noqa: B904 - the same one, further out
        return tuple(found)

    return read


@functools.cache
def _fields(kind: type) -> Mapping[str, tuple[_Reader, bool]]:
    """By the name of each field what reads it, and whether it must be there."""
    hints = _hints(kind)
    return {
        f.name: (
            _reader(hints[f.name]),
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(kind)
    }


def _read_dataclass(kind: type, data: Any) -> Any:
    if not isinstance(data, dict):
        raise _wrong("an object", data)
    fields = _fields(kind)
    if not data.keys() <= fields.keys():
        unknown = sorted(data.keys() - fields.keys())
        raise _wrong("no such key", data[unknown[0]], f".{unknown[0]}")
    values = {}
    for name, (read, required) in fields.items():
        if name in data:
            try:
                values[name] = read(data[name])
            except _MisfitError as misfit:
                raise misfit.within(f".{name}")  # noqa: B904 - the same one, further out
        elif required:
            raise _MisfitError(f"{name} is missing")
    return kind(**values)

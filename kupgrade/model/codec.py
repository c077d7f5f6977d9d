"""Frozen dataclasses to JSON values and back, strictly: a journal on disk is read by another release of the tool.

Standard library only, because the agent in the new kernel runs before anything else is certain to be there.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from kupgrade.errors import BadInputError

T = TypeVar("T")


def encode(value: object) -> Any:
    """`value` (dataclass, enum, tuple, mapping or JSON scalar) as plain JSON values.

    Raises TypeError for anything else: a programming error, never an operator's.
    """
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
            return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"cannot encode {type(value).__name__}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def learn(kind: Any) -> None:
    """Look at everything that decoding a `kind` has to know, ahead of time: `decode` is much faster then."""
    for part in get_args(kind):
        learn(part)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in _learned:
        _learned.add(kind)
        for hint in _hints(kind).values():
            learn(hint)


_learned: set[type] = set()


def decode(cls: type[T], data: object, where: str = "$") -> T:
    """Build a `cls` from JSON values; `where` names the place in messages.

    Raises BadInputError for a wrong type, a missing field or an unknown one.
    """
    result: T = _decode(cls, data, where)
    return result


def _wrong(where: str, expected: str, data: object) -> BadInputError:
    return BadInputError(f"Stored data is not as expected at {where}", f"expected {expected}, found {data!r:.60}")


def _decode(kind: Any, data: object, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any or kind is object:
        return data
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(kind), data, where)
    if origin is tuple:
        return _decode_tuple(get_args(kind), data, where)
    if origin in (dict, Mapping) or origin is getattr(typing, "Mapping", None):
        if not isinstance(data, dict):
            raise _wrong(where, "an object", data)
        item = get_args(kind)[1]
        return {str(key): _decode(item, value, f"{where}.{key}") for key, value in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError:
            raise _wrong(where, " or ".join(repr(m.value) for m in kind), data) from None
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is type(None) and data is None:
        return None
    if isinstance(kind, type) and isinstance(data, kind) and not (kind is int and isinstance(data, bool)):
        return data
    raise _wrong(where, getattr(kind, "__name__", str(kind)), data)


def _decode_union(options: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and type(None) in options:
        return None
    for option in options:
        if option is type(None):
            continue
        try:
            return _decode(option, data, where)
        except BadInputError:
            continue
    raise _wrong(where, " or ".join(getattr(o, "__name__", str(o)) for o in options), data)


def _decode_tuple(items: tuple[Any, ...], data: object, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise _wrong(where, "a list", data)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_decode(items[0], value, f"{where}[{i}]") for i, value in enumerate(data))
    if len(items) != len(data):
        raise _wrong(where, f"{len(items)} values", data)
    return tuple(_decode(kind, value, f"{where}[{i}]") for i, (kind, value) in enumerate(zip(items, data, strict=True)))


def _decode_dataclass(kind: type, data: object, where: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(where, "an object", data)
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise _wrong(f"{where}.{unknown[0]}", "no such key", data[unknown[0]])
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BadInputError(f"Stored data is not as expected at {where}", f"{name} is missing")
    return kind(**values)

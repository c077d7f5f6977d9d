"""What the old kernel asks the agent in a spawned one, and its answers, as JSON in messages of the shared window."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kupgrade.errors import BadInputError
from kupgrade.model.codec import decode, encode
from kupgrade.model.machine import MemoryRange

PING, STATUS, MODULES, LOAD_SSDT, STOP = "ping", "status", "modules", "load-ssdt", "stop"
# Of the handover: warm up and lock, images from the window, take over, how far it is
PREPARE, RECEIVE, TAKE_OVER, STAGE = "prepare", "receive", "take-over", "stage"
INHERIT, INHERITED = "inherit", "inherited"
# What may be asked again when the agent was killed over it, and is there again: done twice it is as done once.
REPEATABLE = frozenset({PING, STATUS, MODULES, PREPARE, RECEIVE, TAKE_OVER, STAGE})
RUN = "run-command"  # in an instance only

INHERITED_FILE = "run/kupgrade/inherited.json"  # in the new kernel: an Inherited, from the end of the old one on


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `number` is the asker's own and comes back in the answer."""

    number: int
    verb: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to request `number`: its result, or `error` (and `why`) when there is none."""

    number: int
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Legacy:
    """What a kernel leaves when it ends. `park`: the page of the heir's park loop.

    `cpus`: APIC IDs of the CPUs that it runs on; when all of them wait there it is gone, and `memory` is free.
    """

    park: int
    cpus: tuple[int, ...]
    memory: tuple[MemoryRange, ...]


class Stage(enum.Enum):
    """How far an inheritance is."""

    NONE = "none"
    WAITING = "waiting"
    TAKING = "taking"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Inherited:
    """What was gained: CPUs online and MemTotal in bytes, before and after; `seconds` from the old kernel's end.

    `missing`: what did not come, in words. `doing`: while it is under way, what of it.
    """

    stage: Stage = Stage.NONE
    cpus_before: str = ""
    cpus: str = ""
    memory_before: int = 0
    memory: int = 0
    seconds: float = 0.0
    missing: tuple[str, ...] = ()
    doing: str = ""


def pack(message: Request | Answer) -> bytes:
    """As the payload of a message."""
    return json.dumps(encode(message), separators=(",", ":")).encode()


def _unpack(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError as error:
        raise BadInputError("A message in the shared window cannot be read", "it is no JSON") from error


def unpack_request(payload: bytes) -> Request:
    """Raises BadInputError."""
    return decode(Request, _unpack(payload))


def unpack_answer(payload: bytes) -> Answer:
    """Raises BadInputError."""
    return decode(Answer, _unpack(payload))

"""Stored plans: written for `apply`, read with suspicion, because root carries out what they say."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.journal import write_durably
from kupgrade.model.codec import decode, encode
from kupgrade.model.plan import PLAN_FORMAT, Plan
from kupgrade.steps import registry
from kupgrade.steps.base import load

_LARGEST = 16 << 20  # bytes


def text(plan: Plan) -> str:
    """A plan as it is stored."""
    return json.dumps(encode(plan), indent=1) + "\n"


def write(path: Path, plan: Plan) -> None:
    """Store a plan (mode 0600, replaced atomically); raises BadInputError."""
    try:
        write_durably(path, text(plan).encode())
    except OSError as error:
        raise BadInputError(f"{path} cannot be written", error.strerror or "", "Choose another file") from error


def read(path: Path) -> Plan:
    """Read a stored plan. Raises BadInputError for everything that is not a plan of this release of kupgrade."""
    try:
        value = json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path} is not a plan", f"{error}", "Make a new plan: kupgrade plan --out FILE") from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != PLAN_FORMAT:
        raise BadInputError(
            f"{path} is not a plan that this kupgrade reads",
            f"format {found!r:.40}, known is {PLAN_FORMAT}",
            "Make a new plan",
        )
    try:
        plan = decode(Plan, value, "plan")
    except BadInputError as error:
        raise BadInputError(f"{path} is not a whole plan", f"{error.what}: {error.why}", "Make a new plan") from error
    registry.load_all()
    for spec in plan.steps:
        step = load(spec)
        if (spec.scope, spec.irreversible) != (step.scope, step.irreversible):
            raise BadInputError(
                f"{path} says of the step {spec.kind} what it is not",
                f"scope {spec.scope.value}, irreversible {spec.irreversible}: changed, or written by another release",
                "Make a new plan",
            )
    return plan


def _bytes(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read", error.strerror or "", "Name a plan file") from error
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise BadInputError(f"{path} is not a regular file", "", "Name a plan file")
        if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
            raise BadInputError(
                f"{path} could have been written by others",
                f"owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}",
                "Make a new plan: kupgrade plan --out FILE",
            )
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise BadInputError(f"{path} is too long for a plan", f"over {_LARGEST} bytes", "Make a new plan")
    return data

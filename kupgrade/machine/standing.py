"""How far the new kernel is, as a small file in /run that its agent reads out to the old kernel."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from kupgrade.errors import KupgradeError
from kupgrade.machine.places import Places
from kupgrade.model.codec import decode, encode
from kupgrade.model.handover import Mark, Stage, Standing

FILE = "stage.json"
MARKS = "marks.json"


def get(places: Places) -> Standing:
    """What was put last."""
    path = places.run / FILE
    try:
        return decode(Standing, json.loads(path.read_text()), str(path))
    except FileNotFoundError:
        return Standing(Stage.WAITING)


def put(places: Places, stage: Stage, why: str = "", ports: tuple[str, ...] = ()) -> None:
    """Say it, whole or not at all."""
    path = places.run / FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(encode(Standing(stage, why, ports))))
    temporary.replace(path)


def put_marks(places: Places, marks: Sequence[Mark]) -> None:
    """Where the time of the handover went; without them nothing is amiss."""
    with contextlib.suppress(OSError):
        (places.run / MARKS).write_text(json.dumps(encode(tuple(marks))))


def marks(places: Places) -> tuple[Mark, ...]:
    """What was put; empty when there is nothing to be read."""
    try:
        return decode(tuple[Mark, ...], json.loads((places.run / MARKS).read_text()), MARKS)
    except (OSError, ValueError, KupgradeError):
        return ()


def fail(places: Places, why: str) -> None:
    """Give up, if nothing is committed yet."""
    if get(places).stage in (Stage.WAITING, Stage.TAKING):
        put(places, Stage.FAILED, why)

"""Releases that may be tried again although they were rolled back: what an operator has forgiven, and until when."""

from __future__ import annotations

import json
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.journal import write_durably

NAME = "forgotten.json"  # in the state directory
FORMAT = "kupgrade.forgotten/1"


def read(folder: Path) -> dict[str, float]:
    """Each with the start of its last upgrade that does not count any more (Unix time). Raises BadInputError."""
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_bytes())
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r:.40}")
        return {str(release): float(when) for release, when in value["releases"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path} is damaged", str(error), "Remove it; rolled-back releases count again") from error


def add(folder: Path, release: str, until: float) -> None:
    """One more. Raises BadInputError for a damaged file."""
    value = {"format": FORMAT, "releases": {**read(folder), release: until}}
    write_durably(folder / NAME, json.dumps(value, indent=1).encode() + b"\n")

"""What criu's images tell of a dump that was made: open and mapped files, how long it stopped all.

Fields as in criu's regfile.proto, remap-file-path.proto and stats.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file by its path in the workload's view. `size`: what the restore will ask for; None: it does not ask."""

    path: str
    size: int | None


def files(directory: Path) -> tuple[SeenFile, ...]:
    """Those that a restore opens by their paths; not deleted ones, whose content is in the images."""
    remapped = {int(each["orig_id"]) for each in _entries(directory / "remap-fpath.img")}
    return tuple(
        SeenFile(str(entry["name"]), None if entry.get("size") is None else int(entry["size"]))
        for number, entry in _regular(directory)
        if number not in remapped
    )


def stood_still(directory: Path) -> float | None:
    """Seconds for which criu itself stopped the processes; None: it does not tell."""
    found = _entries(directory / "stats-dump")
    told = found[0].get("dump", {}).get("frozen_time") if found else None
    return None if told is None else int(told) / 1e6


def _regular(directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for entry in _entries(directory / "files.img"):
        if "reg" in entry:
            yield int(entry["id"]), entry["reg"]


def _entries(path: Path) -> list[dict[str, Any]]:
    """None of an image that criu had no reason to write."""
    from pycriu import images  # late: protobuf costs more than anything else that is imported here

    if not path.exists():
        return []
    with path.open("rb") as file:
        found: list[dict[str, Any]] = images.load(file, pretty=False)["entries"]
    return found

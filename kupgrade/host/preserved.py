"""Images in a live update session, which keeps numbered files and no names.

Token 0 is an index of the others: token N is its Nth file.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kupgrade.errors import BadInputError
from kupgrade.model.codec import decode, encode
from kupgrade.model.workload import Store

FORMAT = "kupgrade.preserved/1"
INDEX_TOKEN = 0
MAX_INDEX = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class PreservedFile:
    """An image: its path below the store's, its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class PreservedLink:
    """A symbolic link between rounds (criu's `parent`)."""

    name: str
    target: str


@dataclass(frozen=True, slots=True)
class PreservedIndex:
    """Everything of one upgrade's images; the file at position N has token N + 1."""

    files: tuple[PreservedFile, ...]
    links: tuple[PreservedLink, ...]
    format: str = FORMAT

    def encoded(self) -> bytes:
        """JSON and, in front of it, its CRC-32."""
        return framed(self)


def framed(value: object) -> bytes:
    """A value as JSON and, in front of it, its CRC-32."""
    text = json.dumps(encode(value)).encode()
    return b"%08x " % zlib.crc32(text) + text


def unframed(data: bytes) -> Any:
    """What `framed` made, as JSON values; raises ValueError when it is damaged."""
    crc, _, text = data.partition(b" ")
    if int(crc, 16) != zlib.crc32(text):
        raise ValueError("its checksum differs")
    return json.loads(text)


def session_name(store: Store) -> str:
    """Of the session that carries a store's images: at most 63 characters, as the kernel wants it."""
    return f"kupgrade-{Path(store.path).name}"


def take_stock(top: Path) -> PreservedIndex:
    """What lies below `top`, in a fixed order."""
    everything = sorted(top.rglob("*"))
    files = [path for path in everything if not path.is_symlink() and path.is_file()]
    links = [path for path in everything if path.is_symlink()]
    return PreservedIndex(
        tuple(PreservedFile(str(path.relative_to(top)), path.lstat().st_size) for path in files),
        tuple(PreservedLink(str(path.relative_to(top)), str(path.readlink())) for path in links),
    )


def read_index(data: bytes) -> PreservedIndex:
    """Parse one; raises BadInputError when it is damaged, or names a file outside of the store."""
    try:
        index = decode(PreservedIndex, unframed(data), "index")
    except (ValueError, RecursionError) as error:
        raise BadInputError("The index of the preserved images is damaged", str(error)) from None
    if index.format != FORMAT:
        raise BadInputError("The preserved images are of another format", index.format)
    _check_names(each.name for each in index.files)
    _check_names(each.name for each in index.links)
    for link in index.links:
        _check_names([os.path.normpath(str(Path(link.name).parent / link.target))])
    return index


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        path = Path(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise BadInputError(f"{name!r:.60} is no image", "preserved images have plain relative names")

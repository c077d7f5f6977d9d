"""What belongs to a checkpoint, with sizes and checksums: its presence says that the images are complete."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = "kupgrade.images/1"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file: size in bytes and CRC-32."""

    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Known:
    """A file that was read before; `written`: its time of last modification then, in nanoseconds."""

    file: ImageFile
    written: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What must be there, whose it is, and for which crossing."""

    upgrade: str
    old_release: str
    new_release: str
    files: Mapping[str, ImageFile]
    format: str = FORMAT


def checksum(path: Path) -> ImageFile:
    """Size and CRC-32 of a file. One buffer for all of it: fresh memory for each chunk costs as much as the sum."""
    crc, size = 0, 0
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
            size += count
    return ImageFile(size, crc)

"""What belongs to a checkpoint, with sizes and checksums: its presence says that the images are complete."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.model.codec import decode

MANIFEST = "manifest.json"
FORMAT = "kupgrade.images/2"
CHUNK = 1 << 16  # bytes with a checksum of their own, in files that hold memory
PAGES = "pages-"
_PARENT = "parent"  # criu's link to the round before


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file: size in bytes and CRC-32. Of one that holds memory the sum is of those of its `chunks`, in hex."""

    size: int
    crc32: int
    chunks: str = ""  # one text: many numbers would cost the blackout

    @property
    def sums(self) -> tuple[int, ...]:
        """CRC-32 of each chunk."""
        packed = bytes.fromhex(self.chunks)
        return struct.unpack(f"<{len(packed) // 4}I", packed)


@dataclass(frozen=True, slots=True)
class Known:
    """A file that was read before; `written`: its time of last modification then, in nanoseconds."""

    file: ImageFile
    written: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What must be there, whose it is, and for which crossing. `links`: where those between rounds lead."""

    upgrade: str
    old_release: str
    new_release: str
    files: Mapping[str, ImageFile]
    format: str = FORMAT
    links: Mapping[str, str] = field(default_factory=dict)

    def check_links(self, top: Path) -> None:
        """Raise BadInputError unless they are there: by another one criu would read the memory of another moment."""
        found = links_in(top)
        for name, target in self.links.items():
            if found.get(name) != target:
                why = f"{name} leads to {found.get(name, 'nothing')}; recorded is {target}"
                raise BadInputError("A checkpoint image is damaged", why)


def links_in(top: Path) -> dict[str, str]:
    """The links between rounds of all workloads in a store's directory."""
    return {str(path.relative_to(top)): str(path.readlink()) for path in sorted(top.glob(f"*/*/{_PARENT}"))}


def checksum(path: Path) -> ImageFile:
    """Size and CRC-32 of a file. One buffer for all of it: fresh memory for each chunk costs as much as the sum."""
    crc, size = 0, 0
    chunks: list[int] = []
    memory = path.name.startswith(PAGES)
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            while count < CHUNK and (more := file.readinto(buffer[count:])):
                count += more
            size += count
            if memory:
                chunks.append(zlib.crc32(buffer[:count]))
            else:
                crc = zlib.crc32(buffer[:count], crc)
    if memory:
        packed = struct.pack(f"<{len(chunks)}I", *chunks)
        return ImageFile(size, zlib.crc32(packed), packed.hex())
    return ImageFile(size, crc)


def sums(top: Path) -> Mapping[Path, ImageFile]:
    """What the manifest in a store's directory says of each file that holds memory; paths without links in them.

    Raises BadInputError.
    """
    try:
        found = decode(Manifest, json.loads((top / MANIFEST).read_bytes()), "manifest")
    except (OSError, ValueError) as error:
        raise BadInputError("The checkpoint's manifest cannot be read", str(error)) from error
    here = top.resolve()
    return {here / name: file for name, file in found.files.items() if Path(name).name.startswith(PAGES)}

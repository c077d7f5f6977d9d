"""What a persistent device-mapper snapshot holds: its exceptions, read from its store.

Source: drivers/md/dm-snap-persistent.c (disk_header, disk_exception; area_location). Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kupgrade.errors import BadInputError
from kupgrade.kernel.devmapper import SECTOR
from kupgrade.kernel.snapshot import CHUNK

CHUNK_SIZE = CHUNK * SECTOR  # bytes
_MAGIC = 0x70416E53
_HEADER = struct.Struct("<IIII")  # magic, valid, version, sectors of a chunk
_EXCEPTION = struct.Struct("<QQ")  # chunk of the origin, chunk of the store
_PER_AREA = CHUNK_SIZE // _EXCEPTION.size


def exceptions(store: memoryview) -> Iterator[tuple[int, int]]:
    """Chunk of the origin, and of the store, of all that was written; the device has to stand still.

    Raises BadInputError when the store is none of ours, or not valid.
    """
    if _HEADER.unpack_from(store) != (_MAGIC, 1, 1, CHUNK):
        raise BadInputError("The snapshot's store cannot be read", "its header is another one")
    at = CHUNK_SIZE
    while at + CHUNK_SIZE <= len(store):
        for number in range(_PER_AREA):
            old, new = _EXCEPTION.unpack_from(store, at + number * _EXCEPTION.size)
            if new == 0:
                return
            if (new + 1) * CHUNK_SIZE > len(store):
                raise BadInputError("The snapshot's store cannot be read", f"chunk {new} is beyond its end")
            yield old, new
        at += (_PER_AREA + 1) * CHUNK_SIZE

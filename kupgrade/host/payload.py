"""Compressed streams inside kernel images and initrds: which kind, where they end, what is in them.

The magic numbers are those of lib/decompress.c. zstd and lz4 are not in Python's standard library:
their frames are walked here (so truncation is always found) and unpacked by the zstd and lz4 tools.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kupgrade.errors import BadInputError, ToolError
from kupgrade.host import command
from kupgrade.model.kernel import Compression

MAGICS = (
    (b"\x1f\x8b", Compression.GZIP),
    (b"\x1f\x9e", Compression.GZIP),
    (b"BZh", Compression.BZIP2),
    (b"\xfd7zXZ\0", Compression.XZ),
    (b"]\0\0", Compression.LZMA),
    (b"\x89LZO", Compression.LZO),
    (b"\x02\x21\x4c\x18", Compression.LZ4),  # the legacy frame, the only one the kernel knows
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
)

LIMIT = 2 << 30  # bytes unpacked; no kernel or initrd is larger, a damaged or hostile one may claim to be
MEMORY = 512 << 20  # bytes for an lzma dictionary; the kernel's own limit is far lower

TOOLS = {
    Compression.ZSTD: ("zstd", "-dqf", "{packed}", "-o", "{unpacked}"),
    Compression.LZ4: ("lz4", "-dqf", "{packed}", "{unpacked}"),
}
TOOL_TIMEOUT = 120.0  # seconds

_LZ4_BLOCK = 8 << 20  # bytes unpacked in one legacy block
_LZ4_BOUND = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16  # LZ4_COMPRESSBOUND: no packed block is longer


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A stream's content and the offset of the first byte after it.

    `unread`: why it could not be unpacked on this machine; then `data` is empty and, for lzo, `end` a guess.
    """

    compression: Compression
    data: bytes
    end: int
    unread: str = ""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def detect(data: bytes, at: int = 0) -> Compression | None:
    """The compression that starts at `at`; None when it is none the kernel knows."""
    return next((kind for magic, kind in MAGICS if data.startswith(magic, at)), None)


def _corrupt(what: str, why: str) -> BadInputError:
    return BadInputError(f"{what} is damaged", why, "Fetch or build the file again")


def unpack(data: bytes, at: int, what: str) -> Unpacked:
    """The stream at `at`; `what` names it in messages.

    Raises BadInputError when it is of no known kind, truncated or corrupt.
    """
    compression = detect(data, at)
    match compression:
        case None:
            raise _corrupt(what, f"no compressed data at offset {at}")
        case Compression.ZSTD:
            return _by_tool(compression, data, slice(at, _zstd_end(data, at, what)), what)
        case Compression.LZ4:
            return _by_tool(compression, data, slice(at, _lz4_end(data, at, what)), what)
        case Compression.LZO:
            return Unpacked(compression, b"", len(data), "lzo is not supported")
    return _by_library(compression, data, at, what)


def _by_library(compression: Compression, data: bytes, at: int, what: str) -> Unpacked:
    rest = memoryview(data)[at:]
    done: _Decompressor
    try:
        if compression is Compression.GZIP:
            done = gzip = zlib.decompressobj(31)
            content = gzip.decompress(rest, LIMIT)
        elif compression is Compression.BZIP2:
            done = bzip2 = bz2.BZ2Decompressor()
            content = bzip2.decompress(rest, LIMIT)
        else:
            form = lzma.FORMAT_XZ if compression is Compression.XZ else lzma.FORMAT_ALONE
            done = other = lzma.LZMADecompressor(form, memlimit=MEMORY)
            content = other.decompress(rest, LIMIT)
    except (zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        raise _corrupt(what, f"{compression.value}: {error}") from error
    if not done.eof:
        why = "it unpacks to too much" if len(content) >= LIMIT else "it ends too early"
        raise _corrupt(what, f"{compression.value}: {why}")
    return Unpacked(compression, content, len(data) - len(done.unused_data))


def _by_tool(compression: Compression, data: bytes, stream: slice, what: str) -> Unpacked:
    """Unpack with a tool, from file to file: a pipe would pass 4 KiB at a time."""
    tool, *words = TOOLS[compression]
    if command.find(tool) is None:
        return Unpacked(compression, b"", stream.stop, f"{tool} is not installed")
    with tempfile.TemporaryDirectory(prefix="kupgrade-") as folder:
        packed, unpacked = Path(folder) / "packed", Path(folder) / "unpacked"
        packed.write_bytes(data[stream])
        try:
            argv = [tool, *(word.format(packed=packed, unpacked=unpacked) for word in words)]
            command.run(argv, timeout=TOOL_TIMEOUT)
        except ToolError as error:
            raise _corrupt(what, f"{tool}: {error.why}") from error
        return Unpacked(compression, unpacked.read_bytes(), stream.stop)


def _zstd_end(data: bytes, at: int, what: str) -> int:
    """Where the zstd frame at `at` ends (RFC 8878, section 3.1.1)."""
    try:
        descriptor = data[at + 4]
        single_segment = descriptor >> 5 & 1
        content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
        dictionary = (0, 1, 2, 4)[descriptor & 3]
        here = at + 5 + (not single_segment) + dictionary + content_size
        last = False
        while not last:
            head = int.from_bytes(data[here : here + 3], "little")
            if here + 3 > len(data):
                raise IndexError
            last, kind, size = bool(head & 1), head >> 1 & 3, head >> 3
            if kind == 3:
                raise _corrupt(what, "zstd: a block of a reserved type")
            here += 3 + (1 if kind == 1 else size)  # a block of type 1 is one byte, repeated
    except IndexError:
        raise _corrupt(what, "zstd: it ends too early") from None
    here += 4 * (descriptor >> 2 & 1)  # checksum
    if here > len(data):
        raise _corrupt(what, "zstd: it ends too early")
    return here


def _lz4_end(data: bytes, at: int, what: str) -> int:
    """Where the legacy lz4 frame at `at` ends. Without an end mark: at what cannot be a block.

    See lz4_Frame_format.md. A kernel image has the unpacked size after it, an initrd zeros or a next archive.
    A small size would read as a block, so the last four bytes are never taken as one.
    """
    here = at + 4
    while here + 4 <= len(data):
        size = struct.unpack_from("<I", data, here)[0]
        if size == 0 or size > _LZ4_BOUND or here + 4 == len(data):
            break
        if here + 4 + size > len(data):
            raise _corrupt(what, "lz4: it ends too early")
        here += 4 + size
    return here

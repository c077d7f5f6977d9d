"""Reads an initrd without booting it, and appends files to one.

An initrd is a chain of cpio archives, each bare or compressed, with zeros between them; later files replace
earlier ones (Documentation/driver-api/early-userspace/buffer-format.rst, init/initramfs.c).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host.image import contents
from kupgrade.host.payload import detect, unpack
from kupgrade.model.kernel import Compression, Initrd, KernelRelease

HEADER = 110  # bytes of a newc header
TRAILER = "TRAILER!!!"
NEWC = (b"070701", b"070702")  # without and with a checksum for each file

_FIELDS = re.compile(rb"[0-9A-Fa-f]{104}")  # int() takes signs, blanks and underscores, too
_MODULES = re.compile(r"(?:usr/)?lib/modules/([^/]+)(?:/|$)")


@dataclass(frozen=True, slots=True)
class CpioEntry:
    """One file of an archive. `mode`: type and permissions as in st_mode; `name` has no leading slash.

    `data`: content, or the target of a symbolic link. `device`: major and minor of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def _damaged(what: str, why: str) -> BadInputError:
    return BadInputError(f"{what} is not a usable initrd", why, "Build the initrd again")


def _padded(size: int) -> int:
    return (size + 3) & ~3


def read_cpio(data: bytes, at: int, what: str) -> tuple[tuple[CpioEntry, ...], int]:
    """The newc archive at `at` (a multiple of 4) and the offset after it.

    Raises BadInputError when it is cut off or not newc; `what` names it in messages.
    """
    entries: list[CpioEntry] = []
    while True:
        if data[at : at + 6] not in NEWC:
            if at + 6 > len(data):
                raise _damaged(what, f"it is cut off at {len(data)} bytes")
            raise _damaged(what, f"there is no newc header at offset {at}")
        if not _FIELDS.fullmatch(data, at + 6, at + HEADER):
            raise _damaged(what, f"the newc header at offset {at} is damaged or cut off")
        fields = [int(data[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        mode, size, namesize = fields[1], fields[6], fields[11]
        start = _padded(at + HEADER + namesize)
        if start + size > len(data) or namesize == 0:
            raise _damaged(what, f"it is cut off at {len(data)} bytes")
        name = data[at + HEADER : at + HEADER + namesize].rstrip(b"\0").decode(errors="surrogateescape")
        at = _padded(start + size)
        if name == TRAILER:
            return tuple(entries), at
        name = name.removeprefix("./").lstrip("/")
        entries.append(CpioEntry(name, mode, data[start : start + size], (fields[9], fields[10])))


@dataclass(frozen=True, slots=True)
class Archive:
    """One link of the chain. `unread`: why it could not be unpacked; then it has no entries."""

    compression: Compression
    entries: tuple[CpioEntry, ...]
    unread: str = ""


def archives(data: bytes, what: str) -> Iterator[Archive]:
    """The chain's archives in order. Raises BadInputError where it is damaged."""
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
            continue
        if data[at : at + 6] in NEWC and at % 4 == 0:
            entries, at = read_cpio(data, at, what)
            yield Archive(Compression.NONE, entries)
            continue
        if detect(data, at) is None:
            raise _damaged(what, f"there is no archive, bare or compressed, at offset {at} of {len(data)}")
        unpacked = unpack(data, at, what)
        at = unpacked.end
        if unpacked.unread:
            yield Archive(unpacked.compression, (), unpacked.unread)
            continue
        yield Archive(unpacked.compression, _inside(unpacked.data, what))


def _inside(data: bytes, what: str) -> tuple[CpioEntry, ...]:
    """What was compressed together: mostly one archive, perhaps several with zeros between them."""
    entries: tuple[CpioEntry, ...] = ()
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
            continue
        more, at = read_cpio(data, at, what)
        entries += more
    return entries


def read(path: Path) -> Initrd:
    """Read an initrd and check that it is whole. Raises BadInputError naming what is wrong."""
    data = contents(path)
    if not data:
        raise _damaged(str(path), "it is empty")
    chain = tuple(archives(data, str(path)))
    if not chain:
        raise _damaged(str(path), "it holds nothing but zeros")
    names = [entry.name for archive in chain for entry in archive.entries]
    return Initrd(
        path=str(path),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        compressions=tuple(archive.compression for archive in chain),
        releases=_releases(names),
        has_init="init" in names,
        has_shell=any(name in ("bin/sh", "usr/bin/sh") for name in names),
        unread="; ".join(archive.unread for archive in chain if archive.unread),
    )


def _releases(names: Iterable[str]) -> tuple[KernelRelease, ...]:
    found: dict[str, KernelRelease] = {}
    for name in names:
        if (match := _MODULES.match(name)) and match[1] not in found:
            try:
                found[match[1]] = KernelRelease(match[1])
            except BadInputError:
                continue  # a directory there that no kernel can look for
    return tuple(found.values())


def write_cpio(entries: Iterable[CpioEntry]) -> bytes:
    """A bare newc archive, all owned by root with time 0: the same entries give the same bytes."""
    out = bytearray()
    ends = CpioEntry(TRAILER, 0)
    for number, entry in enumerate([*entries, ends], start=1):
        name = entry.name.encode(errors="surrogateescape") + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        inode = 0 if entry is ends else number
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += NEWC[0] + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4) + entry.data
        out += bytes(-len(out) % 4)
    return bytes(out)


def append_cpio(initrd: Path, entries: Iterable[CpioEntry], out: Path) -> None:
    """Write `out`: the initrd, zeros, and a bare archive of `entries`. Durable before it gets its name.

    At least four zeros: lib/decompress_unlz4.c takes them as the end of the lz4 stream before. Parent
    directories must be among the entries or in the initrd. Raises BadInputError when `initrd` is damaged.
    """
    data = contents(initrd)
    tuple(archives(data, str(initrd)))  # behind a damaged archive the kernel would never reach ours
    extra = bytes(4 + -len(data) % 4) + write_cpio(entries)
    partial = out.with_name(out.name + ".partial")
    with partial.open("wb") as file:
        partial.chmod(0o600)  # as initramfs-tools and dracut have it: an initrd may hold keys
        file.write(data)
        file.write(extra)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(out)
    folder = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""Files in memory (in /run, in /dev/shm, in a service's own /tmp) that a workload's images hold beside its processes.

PID files, lock files, shared memory with a name: criu finds files by their paths and takes what is in them for granted,
and these end with the kernel. They are read while the workload is frozen and written before it is restored, in what the
workload sees as its root. Nothing here has an undo: what is written is in memory, or in directories that systemd has
just made, and a restore that is repeated writes the same.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.model.codec import decode, encode
from kupgrade.model.workload import Carried

INDEX, DATA = "volatile.json", "volatile.data"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One directory, regular file, FIFO or symbolic link (then `target`). `mode` as stat(2), with its type."""

    path: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    target: str = ""


def found(view: Path, carried: Sequence[Carried]) -> Iterator[tuple[Path, Entry]]:
    """What is to be carried below `view`, directories before what is in them. Sockets are criu's."""
    seen: set[str] = set()
    for each in carried:
        for path in _walk(view / each.path.lstrip("/"), each.uids):
            name = "/" + str(path.relative_to(view))
            try:
                status = path.lstat()
                target = str(path.readlink()) if stat.S_ISLNK(status.st_mode) else ""
            except FileNotFoundError:
                continue  # removed since it was listed: others run, and before the freeze the workload does
            if name in seen or stat.S_IFMT(status.st_mode) not in _KINDS:
                continue
            seen.add(name)
            regular = stat.S_ISREG(status.st_mode)
            yield (
                path,
                Entry(
                    path=name,
                    mode=status.st_mode,
                    uid=status.st_uid,
                    gid=status.st_gid,
                    mtime_ns=status.st_mtime_ns,
                    size=status.st_size if regular else 0,
                    target=target,
                ),
            )


_KINDS = (stat.S_IFDIR, stat.S_IFREG, stat.S_IFIFO, stat.S_IFLNK)


def _walk(top: Path, uids: Sequence[int]) -> Iterator[Path]:
    """`top` and all below it that belongs to one of the users (none named: all). What is not there is nothing."""
    if not os.path.lexists(top):
        return
    yield top
    if top.is_symlink() or not top.is_dir():
        return
    for folder, directories, files in os.walk(top, onerror=_raise):
        below = [Path(folder, name) for name in sorted((*directories, *files))]
        mine = [path for path in below if not uids or _owner(path) in uids]
        kept = {path.name for path in mine}
        directories[:] = [name for name in directories if name in kept]
        yield from mine


def _owner(path: Path) -> int | None:
    """None: it was removed since it was listed."""
    try:
        return path.lstat().st_uid
    except FileNotFoundError:
        return None


def _raise(error: OSError) -> None:
    """A directory that cannot be read is not an empty one; one that was removed since it was listed is nothing."""
    if not isinstance(error, FileNotFoundError):
        raise error


def size(view: Path, carried: Sequence[Carried]) -> int:
    """Bytes of what would be carried now."""
    return sum(entry.size for _, entry in found(view, carried))


def pack(view: Path, carried: Sequence[Carried], directory: Path) -> int:
    """Write all of it into `directory`; the bytes. The workload is frozen: nothing changes meanwhile."""
    entries: list[Entry] = []
    with (directory / DATA).open("wb") as out:
        for path, entry in found(view, carried):
            entries.append(entry)
            if stat.S_ISREG(entry.mode):
                with path.open("rb") as file:
                    _copy(file, out, entry)
    (directory / INDEX).write_text(json.dumps(encode(tuple(entries))))
    return sum(entry.size for entry in entries)


def _copy(file: BinaryIO, out: BinaryIO, entry: Entry) -> None:
    left = entry.size
    while left:
        data = file.read(min(left, _CHUNK))
        if not data:
            why = f"it has {entry.size - left} bytes instead of {entry.size}"
            raise KupgradeError(f"{entry.path} cannot be carried over", why, "Try again")
        out.write(data)
        left -= len(data)


def unpack(view: Path, directory: Path) -> int:
    """Make all of it below `view`; how many there are. What is there in the place of a file is replaced."""
    index = directory / INDEX
    if not index.exists():
        return 0  # images of a release that carried no files
    entries = decode(tuple[Entry, ...], json.loads(index.read_text()), INDEX)
    with (directory / DATA).open("rb") as data:
        for entry in entries:
            _make(view / entry.path.lstrip("/"), entry, data)
    for entry in reversed(entries):  # a directory's time is that of the last name made in it
        path = view / entry.path.lstrip("/")
        with suppress(OSError):
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
    return len(entries)


def _make(path: Path, entry: Entry, data: BinaryIO) -> None:
    """By the type of its mode; nothing is written through a link that somebody else could have put there."""
    kind = stat.S_IFMT(entry.mode)
    if kind == stat.S_IFDIR:
        path.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise BadInputError(f"{entry.path} is a link here", "it was a directory", "Remove it")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    if kind == stat.S_IFREG:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as out:
            _copy(data, out, entry)
    elif kind == stat.S_IFIFO:
        os.mkfifo(path, 0o600)
    elif kind == stat.S_IFLNK:
        path.symlink_to(entry.target)
    os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    if kind != stat.S_IFLNK:
        path.chmod(stat.S_IMODE(entry.mode))

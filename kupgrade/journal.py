"""The journal: append-only, one record a line, sequence number, CRC, fsync, one writer.

A line is `CRC32(hex8) SPACE JSON NEWLINE`; the CRC covers the JSON bytes. The torn-tail rule: an invalid *last* line
without its newline (or with a wrong CRC and nothing after it) is what a power cut leaves of an append that was never
acknowledged; it is cut off before the next append. An invalid line with valid ones behind it is damage, never repaired.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kupgrade.errors import BadInputError, NeedsHumanError, NotNowError
from kupgrade.host.durable import FILE_MODE, set_aside, sync_directory, write_all, write_durably
from kupgrade.model.codec import decode, encode
from kupgrade.model.record import Record, RecordKind

__all__ = ["FILE_MODE", "FORMAT", "Content", "Journal", "parse", "read", "sync_directory", "write_durably"]

FORMAT = "kupgrade.journal/1"
# Bytes that are set aside for records. Images that fill the disk while the workloads stand still must not keep us from
# recording that, for without a record nothing is undone.
ROOM = 1 << 20


def encode_line(value: object) -> bytes:
    """One journal line of a JSON value."""
    body = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode_line(line: bytes) -> Any:
    """The JSON value of a line with its newline; raises ValueError when anything is off."""
    if not line.endswith(b"\n") or line[8:9] != b" ":
        raise ValueError("not a whole line")
    body = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(body):
        raise ValueError("checksum differs")
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@dataclass(frozen=True, slots=True)
class Content:
    """What a journal file holds: records, and the length in bytes up to which it is valid."""

    records: tuple[Record, ...]
    valid_bytes: int
    torn: bool


def parse(data: bytes) -> Content:
    """Read a whole journal.

    Raises NeedsHumanError for damage that a torn append cannot explain, BadInputError for another format.
    """
    lines = data.splitlines(keepends=True)
    records: list[Record] = []
    valid = 0
    for number, line in enumerate(lines):
        try:
            value = decode_line(line)
        except ValueError as error:
            if number == len(lines) - 1 and not _swallowed(line):
                return Content(tuple(records), valid, True)
            raise NeedsHumanError(
                f"The journal is damaged in line {number + 1}",
                f"{error}, and valid records may follow",
                "Keep the file and the images; run kupgrade status for what is known",
            ) from None
        valid += len(line)
        if number == 0:
            _check_header(value)
            continue
        record = decode(Record, value, f"journal line {number + 1}")
        if record.seq != number:
            raise NeedsHumanError(
                f"The journal is damaged in line {number + 1}", f"sequence number {record.seq} instead of {number}"
            )
        records.append(record)
    return Content(tuple(records), valid, False)


def _swallowed(line: bytes) -> bool:
    """Whether a whole record is in there with another behind it: no append was cut short, a newline is lost."""
    ends = (match.start() + 1 for match in re.finditer(rb"\}.[0-9a-f]{8} ", line, re.DOTALL))
    return any(_whole(line[:end] + b"\n") for end in ends)


def _whole(line: bytes) -> bool:
    try:
        decode_line(line)
    except ValueError:
        return False
    return True


def _check_header(value: Any) -> None:
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise BadInputError(
            "The journal has a format this kupgrade does not read",
            f"found {found!r:.40}, known is {FORMAT}",
            "Use the release of kupgrade that wrote it",
        )


def read(path: Path) -> Content:
    """Read the journal at `path` without locking it (for status)."""
    check_modes(path)
    return parse(path.read_bytes())


def check_modes(path: Path) -> None:
    """Raise BadInputError when somebody other than the owner could have written `path`."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise BadInputError(f"{path} is not a regular file", "a journal is never a link or a device")
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
        raise BadInputError(
            f"{path} could have been written by others",
            f"owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}",
            "Find out who wrote it before you go on",
        )


class Journal:
    """An open journal with its lock held. The lock dies with the process, so a kill never leaves it behind.

    `on_disk`: false as long as its file system is in memory only. Then records outlive a kill, and nothing could make
    them outlive more; whoever moves that file system to a disk sets it before, and appends.
    """

    def __init__(self, path: Path, fd: int, records: tuple[Record, ...]) -> None:
        self.path = path
        self.on_disk = True
        self._fd = fd
        self._records = list(records)
        self._room = 0  # bytes from the start of the file for which there are blocks, as far as we know

    @classmethod
    def create(cls, path: Path) -> Journal:
        """Make a new journal (header only, durable); raises FileExistsError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        journal = cls(path, fd, ())
        try:
            _lock(fd, path)
            journal._set_aside(0)
            write_all(fd, encode_line({"format": FORMAT}))
            os.fsync(fd)
            sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            raise
        return journal

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open for appending; cuts a torn tail off. Raises NotNowError when another process holds it."""
        check_modes(path)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _lock(fd, path)
            content = parse(path.read_bytes())
            if content.torn:
                os.ftruncate(fd, content.valid_bytes)
                os.fsync(fd)
            os.lseek(fd, 0, os.SEEK_END)
        except BaseException:
            os.close(fd)
            raise
        if content.valid_bytes == 0:
            write_all(fd, encode_line({"format": FORMAT}))
            os.fsync(fd)
        return cls(path, fd, content.records)

    @property
    def records(self) -> tuple[Record, ...]:
        """Everything recorded so far."""
        return tuple(self._records)

    def append(self, record: Record, *, durable: bool = True) -> None:
        """Write one record; durable when this returns, or else with the next one that is, or with `sync`."""
        end = os.fstat(self._fd).st_size
        line = encode_line(encode(record))
        if end + len(line) + ROOM // 2 > self._room:
            with contextlib.suppress(OSError):  # without it a record may still fit
                self._set_aside(end + len(line))
        try:
            write_all(self._fd, line)
            if durable and self.on_disk:
                os.fsync(self._fd)
        except OSError:
            # Not a record: a later append must not stand behind half a line.
            self._room = 0
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, end)
                os.lseek(self._fd, end, os.SEEK_SET)
            raise
        self._records.append(record)

    def _set_aside(self, end: int) -> None:
        set_aside(self._fd, 0, end + ROOM)
        self._room = end + ROOM

    def sync(self) -> None:
        """Make everything recorded so far durable."""
        os.fsync(self._fd)

    @property
    def next_seq(self) -> int:
        """The sequence number the next record must carry."""
        return len(self._records) + 1

    def close(self) -> None:
        """Give the lock back, and the room that an upgrade which is over needs no more."""
        if self._records and self._records[-1].kind is RecordKind.FINISHED:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size)
        os.close(self._fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NotNowError(
            "Another kupgrade is at work on this upgrade", f"{path} is locked", "See kupgrade status --watch"
        ) from None


def note(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Data of a NOTE record, encoded."""
    return {key: encode(value) for key, value in values.items()}

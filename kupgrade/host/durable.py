"""Files that survive a power cut: written whole, flushed, renamed into place, their directory flushed."""

from __future__ import annotations

import os
from pathlib import Path

FILE_MODE = 0o600


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written."""
    while data:
        data = data[os.write(fd, data) :]


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """Replace `path` atomically and durably: temporary file, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.replace(path)
    sync_directory(path.parent)

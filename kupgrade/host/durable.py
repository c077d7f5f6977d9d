"""Files that survive a power cut: written whole, flushed, renamed into place, their directory flushed."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

FILE_MODE = 0o600
_KEEP_SIZE = 1  # include/uapi/linux/falloc.h


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written."""
    while data:
        data = data[os.write(fd, data) :]


def set_aside(fd: int, start: int, length: int) -> None:
    """Give a file the blocks for `length` bytes from `start` on, its size stays: no full disk can refuse them then.

    Raises OSError; on a file system that cannot do this nothing is set aside, fallocate(2).
    """
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, _KEEP_SIZE, start, length) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
        raise OSError(number, os.strerror(number))


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """Replace `path` atomically and durably: temporary file, fsync, rename, fsync of the directory.

    The temporary file is a new one with a name of its own: of several that write at once each has its own, and what
    somebody else has laid there is not written to.
    """
    temporary = path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(fd, mode)
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)

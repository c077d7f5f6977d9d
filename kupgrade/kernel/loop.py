"""Loop devices: a file as a block device.

Source: include/uapi/linux/loop.h, loop(4).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import reported

LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_CTL_GET_FREE = 0x4C82

_TRIES = 16  # somebody else may take the free one first

Ioctl = Callable[[int, int, int], int]


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with reported("open", path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def attach(backing: Path, root: Path = Path("/"), ioctl: Ioctl = fcntl.ioctl) -> Path:
    """A free loop device on all of the file, writable. Raises KernelError (ENOENT: the module is not loaded)."""
    with _opened(root / "dev/loop-control") as control, _opened(backing) as file:
        for left in reversed(range(_TRIES)):
            with reported("LOOP_CTL_GET_FREE", backing):
                device = root / f"dev/loop{ioctl(control, LOOP_CTL_GET_FREE, 0)}"
            try:
                with _opened(device) as fd, reported("LOOP_SET_FD", device):
                    ioctl(fd, LOOP_SET_FD, file)
            except KernelError as error:
                if error.errno != errno.EBUSY or not left:
                    raise
            else:
                return device
    raise KernelError("LOOP_SET_FD", str(backing), errno.EBUSY)


def detach(device: Path, ioctl: Ioctl = fcntl.ioctl) -> None:
    """Let go of the file, at once or when nobody has the device open any more. Done as well when it has none.

    Raises KernelError.
    """
    try:
        with _opened(device) as fd, reported("LOOP_CLR_FD", device):
            ioctl(fd, LOOP_CLR_FD, 0)
    except KernelError as error:
        if error.errno != errno.ENXIO:
            raise

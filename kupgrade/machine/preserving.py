"""Files into a live update session: the same in the old kernel, and in the new one for the way back."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from typing import Protocol

from kupgrade.host.preserved import INDEX_TOKEN
from kupgrade.kernel.libc import reported
from kupgrade.kernel.liveupdate import Session

_CHUNK = 1 << 20
_SPARE = 128  # descriptors, beside the files themselves


class Index(Protocol):
    """What says which file stands under which token."""

    def encoded(self) -> bytes:
        """As it is preserved itself."""
        ...


def make_room(files: int) -> None:
    """Let this process have so many files more open, by default it may have 1024: a connection is an image of its own.

    Where it may not, whoever opens one too many is told (EMFILE).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/proc/self/fd")) + files + _SPARE  # noqa: PTH208
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    for most in (max(hard, wanted), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, most), most))
        except (OSError, ValueError):
            continue  # above fs.nr_open, or not root: as many as it may have anyway
        return


def preserve(session: Session, index: Index, fds: Sequence[int]) -> None:
    """Give a session the files `fds` of an index, and last the index: with it the session is whole. Closes `fds`.

    Raises KernelError, as session.preserve_fd does.
    """
    everything = list(fds)
    try:
        with reported("memfd_create"):
            everything.append(os.memfd_create("kupgrade-index", os.MFD_CLOEXEC))
        with reported("write", "the index"):
            os.write(everything[-1], index.encoded())
        for token, fd in enumerate(fds, INDEX_TOKEN + 1):
            session.preserve_fd(fd, token)
        session.preserve_fd(everything[-1], INDEX_TOKEN)
    finally:
        for fd in everything:
            os.close(fd)


def content(fd: int, most: int) -> bytes:
    """What stands in an index; of a larger one no more than `most` bytes and a chunk."""
    with reported("read", "the index"):
        data = b""
        while len(data) <= most and (chunk := os.pread(fd, _CHUNK, len(data))):
            data += chunk
    return data

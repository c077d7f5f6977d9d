"""Files into a live update session: the same in the old kernel, and in the new one for the way back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from kupgrade.host.preserved import INDEX_TOKEN
from kupgrade.kernel.libc import reported
from kupgrade.kernel.liveupdate import Session

_CHUNK = 1 << 20


class Index(Protocol):
    """What says which file stands under which token."""

    def encoded(self) -> bytes:
        """As it is preserved itself."""
        ...


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

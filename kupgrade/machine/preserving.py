"""Images into a live update session: the same in the old kernel, and in the new one for the way back."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kupgrade.host.preserved import INDEX_TOKEN, PreservedIndex
from kupgrade.kernel.libc import reported
from kupgrade.kernel.liveupdate import Session


def preserve(session: Session, index: PreservedIndex, fds: Sequence[int]) -> None:
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

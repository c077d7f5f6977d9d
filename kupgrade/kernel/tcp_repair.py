"""TCP sockets in repair mode (TCP_REPAIR, include/uapi/linux/tcp.h): whoever dumps a connection puts it there.

The kernel leaves a socket so when that process is killed, and its owner's next write fails then.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from kupgrade.errors import KernelError
from kupgrade.kernel import process
from kupgrade.kernel.libc import Libc, reported
from kupgrade.kernel.proc import GONE

TCP_REPAIR = 19
_ON, _OFF_NO_PROBE = 1, -1  # off, and the peer is sent nothing


def end(pids: Iterable[int], libc: Libc) -> int:
    """Take the sockets of these processes out of it; how many were in it. Raises KernelError."""
    found = 0
    for pid in pids:
        try:
            found += _end_of(pid, libc)
        except KernelError as error:
            if error.errno not in GONE:  # it has ended, and its sockets with it
                raise
    return found


def _end_of(pid: int, libc: Libc) -> int:
    numbers = [fd.number for fd in process.fds(pid) if fd.protocol.startswith("TCP")]
    if not numbers:
        return 0
    found = 0
    pidfd = libc.pidfd_open(pid)
    try:
        for number in numbers:
            try:
                ours = libc.pidfd_getfd(pidfd, number)
            except KernelError as error:
                if error.errno not in (*GONE, 9):  # EBADF: closed meanwhile
                    raise
                continue
            with socket.socket(fileno=ours) as sock:
                found += leave(sock)
    finally:
        os.close(pidfd)
    return found


def leave(sock: socket.socket) -> bool:
    """Take one socket out of it; whether it was in it. Raises KernelError."""
    with reported("getsockopt", "TCP_REPAIR"):
        if sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR) != _ON:
            return False
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, _OFF_NO_PROBE)
    return True

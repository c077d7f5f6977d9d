"""Runs as ExecStartPre= of systemd-journald.service: carries stream descriptors from whoever offers them to PID 1.

`python3 -sP -m kupgrade.host.journal_push SOCKET`. PID 1 keeps descriptors for a service (sd_notify(3), FDSTORE=1) and
passes them to its main process: what journald restores its own streams by. Standard library only, nothing of ours: the
journal waits for this program. Whoever offers the descriptors serves SOCKET; when nobody does, nothing happens.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from collections.abc import Sequence

STORED = b"stored"
MOST = 64  # descriptors in one message; the kernel passes up to 253 (SCM_MAX_FD)
TIMEOUT = 5.0  # seconds, for each of: the offer, PID 1


def store(notify: str, fds: Sequence[int], pid: int = 0) -> None:
    """Put `fds` into the descriptor store of the unit of `pid` (0: ourselves) and wait until PID 1 has seen them.

    `notify` is the path of PID 1's socket ("@" first: abstract). They are watched: the store drops a stream that its
    writers have closed, as with streams that journald stored. Raises OSError; TimeoutError when PID 1 does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT)
        manager.connect(f"\0{notify[1:]}" if notify.startswith("@") else notify)
        for start in range(0, len(fds), MOST):
            send(manager, b"FDSTORE=1", fds[start : start + MOST], pid)
        barrier(manager, pid)


def barrier(manager: socket.socket, pid: int) -> None:
    """Wait until PID 1 has taken all messages before (sd_notify_barrier(3)). Raises OSError, as TimeoutError, too."""
    reader, writer = os.pipe()
    try:
        try:
            send(manager, b"BARRIER=1", [writer], pid)
        finally:
            os.close(writer)
        _await_end(reader)
    finally:
        os.close(reader)


def send(manager: socket.socket, text: bytes, fds: Sequence[int], pid: int) -> None:
    """One message in the name of `pid` (0: our own), with descriptors. Raises OSError."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    if pid:  # only root may name another process
        credentials = struct.pack("iII", pid, os.geteuid(), os.getegid())
        ancillary.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials))
    manager.sendmsg([text], ancillary)


def _await_end(reader: int) -> None:
    """Until PID 1 closed the other end of a pipe."""
    poll = select.poll()
    poll.register(reader, 0)
    if not poll.poll(TIMEOUT * 1000):
        raise TimeoutError(f"PID 1 did not take the descriptors within {TIMEOUT:g} s")


def push(offer: str, notify: str) -> int:
    """Fetch the descriptors offered at the socket `offer`, store them, say so there; how many. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(TIMEOUT)
        agent.connect(offer)
        fds: list[int] = []
        try:
            while True:  # one byte comes with each set of descriptors, an empty set last
                text, more, _flags, _address = socket.recv_fds(agent, 1, MOST)
                fds += more
                if not text or not more:
                    break
            store(notify, fds)
        finally:
            for fd in fds:
                os.close(fd)
        agent.sendall(STORED)
    return len(fds)


def main(arguments: Sequence[str]) -> int:
    """Push what is offered at the socket named by the only argument. Failures go to the kernel's log."""
    offer, notify = arguments[0], os.environ.get("NOTIFY_SOCKET", "")
    if not notify or not os.access(offer, os.F_OK):
        return 0
    try:
        push(offer, notify)
    except OSError as error:
        _complain(f"<4>kupgrade: journal streams were not handed over: {error}\n")
        return 1
    return 0


def _complain(text: str) -> None:
    log = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(log, text.encode())
    finally:
        os.close(log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

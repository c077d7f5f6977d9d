"""`criu swrk` children: one waits for one request at its end of a socket (criu/cr-service.c).

Seen from inside of a service's own mount namespace its files, and the mounts that it sees, are criu's own: they are
dumped, and found again, by their paths. What makes the namespaces is systemd, in either kernel; criu makes none.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kupgrade.errors import KupgradeError
from kupgrade.host import command

_FLAGS = {"mnt": "mount", "uts": "uts", "ipc": "ipc"}  # kinds, as nsenter(1) names them


class CheckpointError(KupgradeError):
    """criu could not dump or restore; `why` holds the first error of its log."""


@dataclass(frozen=True, slots=True)
class Inside:
    """The namespaces that a child enters before it becomes criu: those of these kinds that the process `pid` has.

    `own_ipc`: it makes an IPC namespace of its own instead, so that criu takes that of the dumped processes, which
    is the host's, for one to be dumped: it dumps System V memory only then.
    """

    pid: int
    kinds: tuple[str, ...] = ()
    own_ipc: bool = False

    def words(self) -> list[str]:
        """What is put before a command."""
        found = ["unshare", "--ipc", "--"] if self.own_ipc else []
        if self.kinds:
            found += ["nsenter", *(f"--{_FLAGS[kind]}=/proc/{self.pid}/ns/{kind}" for kind in self.kinds), "--"]
        return found


class Swrk:
    """A child that waits for one request, and our end of its socket.

    It finds directories among this process's descriptors, by the PID that made the socket; what a restore inherits has
    to be `inherited`. Started by vfork(2), as subprocess does, and not by pycriu's fork(2): that copies the page tables
    of a process which is locked in memory, and every page that is written afterwards costs a fault.
    """

    def __init__(self, binary: str, inherited: Sequence[int] = (), inside: Inside | None = None) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null, fds = subprocess.DEVNULL, [*inherited]
        with theirs:
            fds.append(theirs.fileno())
            words, name = (inside.words() if inside else []), binary
            program = -1
            try:
                if words:
                    program, name = _opened(binary)
                    fds.append(program)
                argv = [*words, name, "swrk", str(theirs.fileno())]
                self._process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, pass_fds=fds)
            except OSError as error:
                self.socket.close()
                why = f"{binary}: {error.strerror}"
                raise CheckpointError("criu cannot be started", why, f"See that {binary} --version works") from error
            finally:
                if program >= 0:
                    os.close(program)

    def end(self) -> None:
        """It ends when it has no one to answer to; wait for that."""
        self.socket.close()
        self._process.wait()


def _opened(binary: str) -> tuple[int, str]:
    """A descriptor of the program and its path by that: inside, its file may be on a mount that forbids to execute."""
    path = binary if "/" in binary else command.find(binary)
    if path is None:
        raise FileNotFoundError(2, "No such file or directory", binary)
    fd = os.open(path, os.O_PATH)
    return fd, f"/proc/self/fd/{fd}"

"""`criu swrk` children: one waits for one request at its end of a socket (criu/cr-service.c).

Seen from inside of a service's own mount namespace its files, and the mounts that it sees, are criu's own: they are
dumped, and found again, by their paths. What makes the namespaces is systemd, in either kernel; criu makes none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import command

# Looks in a row that find a criu which is asked to dump just where it was: it has not even been woken. It would not end
# by itself (it waits for a task that does not stop, for storage that does not answer), and the workloads stand still as
# long as it does. Looks and not seconds: a host that was not run at all for a while has not looked, either.
STILL = 16
_POLL = 0.5  # seconds
_END_PATIENCE = 5.0  # seconds
_STACK = 256 << 10  # bytes of a watching thread: it is locked in memory with the rest
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

    `guarded`: once it is asked, it is killed when it stands still. A task that it held then goes on by itself: the
    kernel lets go of it, and criu's code in it, which hears nobody any more, restores what it found (compel's daemon).
    Connections that it had in repair mode stay so (kernel/tcp_repair.py).
    """

    def __init__(
        self, binary: str, inherited: Sequence[int] = (), inside: Inside | None = None, *, guarded: bool = False
    ) -> None:
        self.stood_still = False
        self._asked, self._over = threading.Event(), threading.Event()
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
        if guarded:
            self._watch()

    def asked(self) -> None:
        """Its work begins."""
        self._asked.set()

    def check(self) -> None:
        """Raises KupgradeError when it was killed: what it then seems to have said, nobody did."""
        if self.stood_still:
            raise KupgradeError("criu was killed", f"it stood still for {STILL * _POLL:g} s")

    def end(self) -> None:
        """It ends when it has no one to answer to; wait for that. One that cannot even be killed is left."""
        self._over.set()
        self._asked.set()
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_PATIENCE if self.stood_still else None)

    def _watch(self) -> None:
        """In a thread that is there before anything stands still: a blackout has no time to make one."""
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=self._guard, name="criu guard", daemon=True).start()
        finally:
            threading.stack_size(before)

    def _guard(self) -> None:
        self._asked.wait()
        before, looks = -1, 0
        while not self._over.wait(_POLL):
            now = sum(map(_work, members := family(self._process.pid)))
            before, looks = now, looks + 1 if now == before else 0
            if looks >= STILL:
                self.stood_still = True
                for pid in members:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                # Whoever waits for the answer must not wait for one that not even a signal ends.
                with contextlib.suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)
                return


def family(pid: int) -> tuple[int, ...]:
    """It and those that it forked."""
    return (pid, *(each for child in children(pid) for each in family(child)))


def children(pid: int) -> tuple[int, ...]:
    """What the threads of a process have forked (proc_tid_children(5)); none of one that is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return tuple(found)


def _work(pid: int) -> int:
    """What grows with all that a process does: time on a processor, and how often it came there or had to leave."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    switches = (line.split()[1] for line in status.splitlines() if "ctxt_switches:" in line)  # proc_pid_status(5)
    return ticks(pid) + sum(map(int, switches))


def ticks(pid: int) -> int:
    """Processor time, user and kernel (proc_pid_stat(5), fields 14 and 15), in clock ticks; 0 of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _opened(binary: str) -> tuple[int, str]:
    """A descriptor of the program and its path by that: inside, its file may be on a mount that forbids to execute."""
    path = binary if "/" in binary else command.find(binary)
    if path is None:
        raise FileNotFoundError(2, "No such file or directory", binary)
    fd = os.open(path, os.O_PATH)
    return fd, f"/proc/self/fd/{fd}"

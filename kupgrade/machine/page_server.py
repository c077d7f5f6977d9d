"""Whoever fills the memory of restored processes: a ring of three, of which one serves and each replaces another.

They share one table of descriptors (clone(2), CLONE_FILES) and one log (fill_log.py), so that what the kernel
puts into the table for one of them, the descriptor of a process that was just forked, is there when that one is killed.
The keeper watches the server, the spare the keeper, the server the spare, each by a pidfd. Any two may be killed at
once. All three at the same moment may not: then the kernel ends the registrations and what is missing reads as zeros.

They are nobody's: out of every unit, the last that are ended for want of memory, deaf to signals that can be ignored.

Crash windows: until criu has ended well the server's end is the end of the restore; from then on a new one goes on. A
page that cannot be placed ends the workload by SIGKILL, the descriptors still open, so that nobody can have read zeros.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host.manifest import ImageFile
from kupgrade.host.memory_images import Memory
from kupgrade.kernel import cgroup, proc, shared_table, userfaultfd
from kupgrade.kernel.libc import reported
from kupgrade.kernel.userfaultfd import AgainError, GoneError
from kupgrade.machine.fill_files import load
from kupgrade.machine.fill_log import Field, FillLog, Kind, Stage
from kupgrade.machine.fill_roles import Role, plays
from kupgrade.machine.fill_spaces import Space, Spaces

SOCKET = "lazy-pages.socket"  # criu's name for it, in its work directory
FINISHED = 0x52535446  # LAZY_PAGES_RESTORE_FINISHED, criu/uffd.c
RESTARTS = 20  # without a byte placed in between
_POLL = 0.01
_NEXT_FAULT, _IN_A_ROW = 3.0, 8  # milliseconds; and looks that found faults, until the rest has its turn
_PATIENCE = 30.0  # seconds until killed processes must have ended
_INT = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Charge:
    """What a server is to fill. `cgroup`: of the workload, for the end of processes that it forked."""

    name: str
    memories: tuple[Memory, ...]
    cgroup: str
    log: Path
    work: Path  # criu's work directory
    root: Path = Path("/")
    sums: Mapping[Path, ImageFile] | None = None  # of every file with memory; None: what it holds was read already


class Ring:
    """Server, keeper and spare: all are this object, in three processes."""

    def __init__(self, charge: Charge) -> None:
        self.charge = charge
        self.log = FillLog(charge.log, create=True)
        self.log[Field.TOTAL] = sum(each.size for each in charge.memories)
        sources, files = load(charge.memories, charge.sums)
        self.log[Field.CHECKS] = int(charge.sums is not None)
        self.spaces = Spaces(self.log, sources, files, {each.pid: each.regions for each in charge.memories})
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        path = charge.work / SOCKET
        path.unlink(missing_ok=True)
        with reported("bind", path):
            self.listener.bind(str(path))
            path.chmod(0o600)
            self.listener.listen(1)
        self.kill_switch = _open_kill_switch(charge.cgroup)
        self._note(Role.KEEPER)
        self.log.publish()

    def begin(self) -> NoReturn:
        """The first process is the keeper."""
        self._clone(Role.SPARE, self.hold)
        self.keep(self._clone(Role.SERVER, self.serve))

    def _clone(self, role: Role, work: Callable[[], NoReturn]) -> int:
        """A process with this one's descriptors, the same table; its pidfd. The log names it before it runs."""
        self.log[role.since] = 0
        pid = shared_table.clone(self.log.address(role.who))
        if pid == 0:
            try:
                self._note(role)
                work()
            except BaseException as error:
                say(f"{self.charge.name}: {type(error).__name__}: {error}")
            finally:
                os._exit(1)
        return os.pidfd_open(pid)

    def _note(self, role: Role) -> None:
        self.log[role.who] = os.getpid()
        self.log[role.since] = proc.process(os.getpid()).starttime

    def _watch(self, role: Role) -> int:
        """The pidfd of whoever plays a role; -1: nobody."""
        return _pidfd(self.log[role.who]) if plays(self.log, role) else -1

    def _await_end(self, pidfd: int) -> None:
        """Of another one; this process ends, too, when there is nothing more to do."""
        if pidfd >= 0:
            _await_one([pidfd], None)
            os.close(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        if self.log.stage in (Stage.DONE, Stage.FAILED):
            os._exit(0)
        self.log[Field.RESTARTS] += 1

    def hold(self) -> NoReturn:
        """The role of the spare."""
        while True:
            self._await_end(self._watch(Role.KEEPER))
            self._clone(Role.KEEPER, self.keep)

    def keep(self, server: int = -1) -> NoReturn:
        """The role of the keeper. Servers that achieve nothing are followed by one that ends the workload."""
        placed, tries = -1, 0
        server = server if server >= 0 else self._watch(Role.SERVER)
        while True:
            self._await_end(server)
            tries = tries + 1 if self.log[Field.PLACED] == placed else 0
            placed = self.log[Field.PLACED]
            if tries > 2 * RESTARTS:
                self._end_blindly()
            server = self._clone(Role.SERVER, partial(self.go_on, hopeless=tries > RESTARTS))

    def _end_blindly(self) -> NoReturn:
        """When not even the log can be followed: whoever criu restored ends, and with its cgroup what that forked."""
        for entry in self.log.entries():
            if entry.kind is Kind.SPACE and entry.words[2]:
                _kill(entry.words[2] - 1)
        self._end_workload("its page servers end at once")

    def go_on(self, *, hopeless: bool = False) -> NoReturn:
        """The role of a server that comes after another one. `hopeless`: after too many that achieved nothing."""

        def work() -> None:
            self.spaces.replay(answer=not hopeless)
            if self.log.stage is not Stage.FILLING:
                raise KupgradeError("The page server ended before criu had restored everything")
            if hopeless:
                raise KupgradeError("The page server does not come to place a page", f"{RESTARTS} ended at once")
            self._fill()

        self._guarded(work)

    def serve(self) -> NoReturn:
        """The role of the first server: from criu's connection on."""

        def work() -> None:
            self._receive()
            self._fill()

        self._guarded(work)

    def _guarded(self, work: Callable[[], None]) -> NoReturn:
        try:
            work()
        except (KupgradeError, OSError) as error:
            self._end_workload(str(error))
        os._exit(0)

    def _receive(self) -> None:
        """What criu sends: each task's PID and descriptor, a zombie's PID below zero, and a last word."""
        line, _ = self.listener.accept()
        (self.charge.work / SOCKET).unlink(missing_ok=True)
        self.log[Field.STAGE] = Stage.RESTORING
        while True:
            ready = _await_one([line.fileno(), *(each.fd for each in self.spaces.all.values())], None)
            for space in [each for each in self.spaces.all.values() if each.fd in ready]:
                self.spaces.read(space)
            if line.fileno() not in ready:
                continue
            data = line.recv(_INT.size, socket.MSG_WAITALL)
            if len(data) < _INT.size:
                raise KupgradeError("criu ended before it had restored everything", "it closed the connection")
            number = _INT.unpack(data)[0]
            if number == FINISHED:
                break
            if number > 0:
                _, fds, _, _ = socket.recv_fds(line, 1, 1)
                if len(fds) != 1:
                    raise KupgradeError("criu sent no descriptor", f"process {number}")
                self.spaces.add(fds[0], number, _pidfd(number))
        line.close()
        self.listener.close()
        self.log[Field.RESTORED_AT] = time.monotonic_ns()
        self.log[Field.STAGE] = Stage.FILLING

    def _fill(self) -> None:
        spare, wait, row = self._watch(Role.SPARE), 0.0, 0
        while self.spaces.all:
            faults = self.log[Field.FAULTS]
            spare = self._look(spare, wait)
            # Whoever waits for one page is likely to wait for the next one soon; but the rest must come, too.
            row = row + 1 if self.log[Field.FAULTS] != faults else _IN_A_ROW
            wait = self._work() if row >= _IN_A_ROW else _NEXT_FAULT
            row %= _IN_A_ROW
        self.log[Field.FILLED_AT] = time.monotonic_ns()
        self.log[Field.STAGE] = Stage.DONE

    def _look(self, spare: int, wait: float) -> int:
        """Deal with all that has happened; the spare's pidfd, of a new one when the old one has ended."""
        by_fd = {each.fd: each for each in self.spaces.all.values()}
        if spare < 0 or _await_one([spare], 0):
            self._await_end(spare)
            spare = self._clone(Role.SPARE, self.hold)
        for fd in _await_one([*by_fd], wait):
            while by_fd[fd].number in self.spaces.all and self.spaces.read(by_fd[fd]):
                pass
        return spare

    def _work(self) -> float:
        """Place one chunk, or close what is filled; milliseconds that may be waited for events then."""
        space = next(iter(self.spaces.all.values()), None)
        if space is None:
            return 0
        try:
            if space.todo.first() is None:
                self._close(space)
            else:
                self.spaces.place(space)
        except AgainError:
            return 1  # an event is on its way
        except GoneError:
            self.spaces.close(space)
        return 0

    def _close(self, space: Space) -> None:
        """Only when no event is left unread: a process that is forking must find everything placed."""
        while self.spaces.read(space):
            pass
        if space.todo.first() is None:
            self.spaces.close(space)

    def _end_workload(self, why: str) -> NoReturn:
        """Nobody may read zeros: the processes end first, then the descriptors."""
        say(f"{self.charge.name}: {why}. Its processes are killed: they must not go on without their memory")
        self.log.explain(why)
        spaces = list(self.spaces.all.values())
        for space in spaces:
            _kill(space.pidfd)
        if self.kill_switch >= 0 and (not spaces or any(each.pidfd < 0 for each in spaces)):
            with contextlib.suppress(OSError):
                os.write(self.kill_switch, b"1")
        deadline = time.monotonic() + _PATIENCE
        while not all(userfaultfd.gone(each.fd) for each in spaces) and time.monotonic() < deadline:
            time.sleep(_POLL)
        self.log[Field.STAGE] = Stage.FAILED
        os._exit(1)


def _kill(pidfd: int) -> None:
    with contextlib.suppress(OSError):
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _pidfd(pid: int) -> int:
    """-1: it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _await_one(fds: Sequence[int], wait: float | None) -> list[int]:
    """Those that can be read, or have ended; waits for one of them (milliseconds; None: for ever)."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(wait)]


def _open_kill_switch(path: str) -> int:
    """cgroup.kill of a cgroup, opened ahead of the need; -1: there is none (Linux before 5.14)."""
    try:
        return os.open(cgroup.directory(path) / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except (OSError, KernelError):
        return -1


def say(text: str) -> None:
    """A line for the system log."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"<2>kupgrade: page server of {text}\n")
        sys.stderr.flush()

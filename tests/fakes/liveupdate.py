"""A live update device without a kernel: sessions, tokens, errno, and kexecs that carry over what was held open.

It takes real files (memfds, tmpfs files) and judges them as the kernel does, and gives back real memfds. Descriptors of
the device and of sessions are numbers of its own, from FIRST on. It does not fix the size of a preserved file.
`tests/vm/test_liveupdate.py` runs the cases of `liveupdate_cases.py` on the kernel, the unit tests run them here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.kernel import liveupdate_errors as requests
from kupgrade.kernel.liveupdate import END, NAME, SESSION, TRANSFER

FIRST = 1 << 20


def refuse(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _devices_of_tmpfs() -> set[int]:
    """st_dev of all tmpfs: those mounted, and the kernel's own, in which memfds lie."""
    fd = os.memfd_create("where")
    found = {os.fstat(fd).st_dev}
    os.close(fd)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.partition(" - ")[2].split()[0] == "tmpfs":
            major, minor = line.split()[2].split(":")
            found.add(os.makedev(int(major), int(minor)))
    return found


@dataclass
class File:
    """A preserved file: a descriptor in the kernel that has it; bytes, offset and seals on the way to the next one."""

    fd: int = -1
    content: bytes = b""
    offset: int = 0
    seals: int = 0

    @property
    def identity(self) -> tuple[int, int]:
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    def let_go(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def packed(self) -> File:
        """As the next kernel finds it, in memory that is nobody's yet."""
        content = Path(f"/proc/self/fd/{self.fd}").read_bytes()
        try:
            seals = fcntl.fcntl(self.fd, fcntl.F_GET_SEALS)
        except OSError:  # a file on a tmpfs that has a mount point
            seals = fcntl.F_SEAL_SEAL
        return File(-1, content, os.lseek(self.fd, 0, os.SEEK_CUR), seals)

    def unpack(self) -> None:
        if self.fd < 0:
            self.fd = os.memfd_create("luo_file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(self.fd, self.content)
            os.lseek(self.fd, self.offset, os.SEEK_SET)
            if self.seals:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, self.seals)


@dataclass
class FakeSession:
    """A session in one kernel; `opened`: descriptors of it."""

    name: bytes
    incoming: bool = False
    retrieved: bool = False
    files: dict[int, File] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)

    def empty(self) -> None:
        for each in self.files.values():
            each.let_go()
        self.files.clear()


@dataclass
class FakeLiveUpdate:
    """The calls of `kupgrade.kernel.liveupdate.Calls`, over any number of kernels.

    `there`: whether the kernel that runs has the device. `refusals`: errno values to fail with, one a call, by
    request; `OPEN` stands for open(2). `generation`: kernels so far.
    """

    OPEN = -1

    there: bool = True
    generation: int = 1
    outgoing: dict[bytes, FakeSession] = field(default_factory=dict)
    incoming: dict[bytes, FakeSession] = field(default_factory=dict)
    refusals: dict[int, list[int]] = field(default_factory=dict)
    log: list[tuple[int, str]] = field(default_factory=list)
    _device: int = -1
    _fds: dict[int, FakeSession] = field(default_factory=dict)
    _next: int = FIRST
    _tmpfs: set[int] = field(default_factory=_devices_of_tmpfs)

    # What programs call

    def open_device(self, path: Path) -> int:
        self._refuse(self.OPEN, str(path))
        if not self.there:
            raise refuse(errno.ENOENT)
        if self._device >= 0:
            raise refuse(errno.EBUSY)
        self._device = self._number()
        return self._device

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        if fd < 0:
            raise refuse(errno.EBADF)
        if fd == self._device:
            known: dict[int, Callable[..., None]] = {
                requests.CREATE_SESSION: self._create,
                requests.RETRIEVE_SESSION: self._retrieve,
            }
            arguments: tuple[object, ...] = (argument,)
        elif fd in self._fds:
            known = {
                requests.PRESERVE_FD: self._preserve,
                requests.RETRIEVE_FD: self._retrieve_fd,
                requests.FINISH: self._finish,
                requests.GET_NAME: self._get_name,
            }
            arguments = (self._fds[fd], argument)
        else:
            os.fstat(fd)  # EBADF
            raise refuse(errno.ENOTTY)
        if request not in known:
            raise refuse(errno.EINVAL)
        self._refuse(request, self._fds[fd].name.decode() if fd in self._fds else "")
        known[request](*arguments)

    def close(self, fd: int) -> None:
        if fd == self._device:
            self._device = -1
            return
        if fd not in self._fds:
            raise refuse(errno.EBADF)
        session = self._fds.pop(fd)
        session.opened.discard(fd)
        if not session.opened:
            session.empty()
            del (self.incoming if session.incoming else self.outgoing)[session.name]

    # What happens to the machine, and to programs

    def share(self, fd: int) -> int:
        """Another descriptor of the same session, as dup(2), fork(2) or a Unix socket make one."""
        return self._opened(self._fds[fd])

    def die(self, *fds: int) -> None:
        """A process ends that held these."""
        for fd in fds:
            if fd == self._device or fd in self._fds:
                self.close(fd)

    def kexec(self, *, takes_over: bool = True) -> None:
        """The next kernel: it has what was held open; what the last one had and nobody took is lost.

        `takes_over` False: it cannot read the data, or it was loaded by kexec_load(2), or the machine was reset.
        """
        carried = {
            name: FakeSession(name, incoming=True, files={token: file.packed() for token, file in each.files.items()})
            for name, each in self.outgoing.items()
        }
        for each in (*self.outgoing.values(), *self.incoming.values()):
            each.empty()
        self.outgoing, self.incoming = {}, carried if takes_over else {}
        self._fds, self._device = {}, -1
        self.generation += 1

    # The kernel's side of each request

    def _refuse(self, request: int, about: str) -> None:
        self.log.append((request, about))
        if self.refusals.get(request):
            raise refuse(self.refusals[request].pop(0))

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _opened(self, session: FakeSession) -> int:
        fd = self._number()
        self._fds[fd] = session
        session.opened.add(fd)
        return fd

    def _create(self, argument: bytearray) -> None:
        name = _name(argument)
        if name in self.outgoing:
            raise refuse(errno.EEXIST)
        self.outgoing[name] = FakeSession(name)
        SESSION.pack_into(argument, 0, SESSION.size, self._opened(self.outgoing[name]), name)

    def _retrieve(self, argument: bytearray) -> None:
        name = _name(argument)
        if name not in self.incoming:
            raise refuse(errno.ENOENT)
        session = self.incoming[name]
        if session.retrieved:
            raise refuse(errno.EINVAL)
        session.retrieved = True
        SESSION.pack_into(argument, 0, SESSION.size, self._opened(session), name)

    def _preserve(self, session: FakeSession, argument: bytearray) -> None:
        _size, fd, token = TRANSFER.unpack(argument)
        if session.incoming:
            raise refuse(errno.EINVAL)
        if token in session.files:
            raise refuse(errno.EEXIST)
        facts = os.fstat(fd)  # EBADF
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink or facts.st_dev not in self._tmpfs:
            raise refuse(errno.ENOENT)
        sessions = (*self.outgoing.values(), *self.incoming.values())
        held = [each for one in sessions for each in one.files.values() if each.fd >= 0]
        if (facts.st_dev, facts.st_ino) in {each.identity for each in held}:
            raise refuse(errno.EBUSY)
        session.files[token] = File(os.dup(fd))

    def _retrieve_fd(self, session: FakeSession, argument: bytearray) -> None:
        _size, _fd, token = TRANSFER.unpack(argument)
        if not session.incoming:
            raise refuse(errno.EINVAL)
        if token not in session.files:
            raise refuse(errno.ENOENT)
        session.files[token].unpack()
        TRANSFER.pack_into(argument, 0, TRANSFER.size, os.dup(session.files[token].fd), token)

    def _finish(self, session: FakeSession, argument: bytearray) -> None:
        if END.unpack(argument)[1] or not session.incoming:
            raise refuse(errno.EINVAL)
        session.empty()

    def _get_name(self, session: FakeSession, argument: bytearray) -> None:
        NAME.pack_into(argument, 0, NAME.size, 0, session.name)


def _name(argument: bytearray) -> bytes:
    """The name in the argument; EINVAL without one, and without the NUL behind it."""
    raw = SESSION.unpack(argument)[2]
    name, nul, _rest = raw.partition(b"\0")
    if not name or not nul:
        raise refuse(errno.EINVAL)
    return bytes(name)

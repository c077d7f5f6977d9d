"""What /dev/liveupdate answers, case by case, over three kernels: one table for the kernel and for the fake of it.

A case returns what it saw: a word, or the class of the error and its errno. It needs kupgrade and the standard library
only, so that it runs in a virtual host as well.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel import liveupdate
from kupgrade.kernel.liveupdate import SESSION, Calls, Device, Session

CONTENT = b"what the first kernel wrote\n" * 1000
LARGEST = 2**64 - 1  # token
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass
class Rig:
    """`tmpfs`: a folder on one. `share`: another descriptor of a session. `kept`: what cases of one kernel hand on."""

    calls: Calls
    tmpfs: Path
    share: Callable[[int], int]
    root: Path = Path("/")
    kept: dict[str, Session] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def create(self, name: str) -> Session:
        return liveupdate.create_session(name, self.root, self.calls)

    def retrieve(self, name: str) -> Session:
        return liveupdate.retrieve_session(name, self.root, self.calls)

    def lives(self, name: str) -> bool:
        return liveupdate.session_lives(name, self.root, self.calls)

    def device(self, patience: float = 0.0) -> Device:
        return Device.opened(self.root, self.calls, patience)


@dataclass(frozen=True)
class Case:
    name: str
    expected: str
    run: Callable[[Rig], str]
    real_only: bool = False

    def seen(self, rig: Rig) -> str:
        """What `run` returns, or which error ended it."""
        try:
            return self.run(rig)
        except KernelError as error:
            return f"{type(error).__name__} {errno.errorcode.get(error.errno, str(error.errno))}"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))


FIRST: list[Case] = []  # each leaves nothing behind
SECOND: list[Case] = []  # in this order, after `leave`
THIRD: list[Case] = []  # in this order, after another kexec


def case(
    table: list[Case], name: str, expected: str = "ok", real_only: bool = False
) -> Callable[[Callable[[Rig], str | None]], None]:
    def add(run: Callable[[Rig], str | None]) -> None:
        table.append(Case(name, expected, lambda rig: run(rig) or "ok", real_only))

    return add


@contextmanager
def memfd(content: bytes = CONTENT, seals: bool = True) -> Iterator[int]:
    fd = os.memfd_create("case", os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if seals else 0))
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def nameless(rig: Rig, content: bytes = CONTENT) -> int:
    path = rig.tmpfs / "kupgrade-case"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    path.unlink()
    os.write(fd, content)
    return fd


# The first kernel


@case(FIRST, "make a session")
def _(rig: Rig) -> None:
    rig.create("case").close()


@case(FIRST, "the same name twice", "SessionExistsError EEXIST")
def _(rig: Rig) -> None:
    with rig.create("case"):
        rig.create("case").close()


@case(FIRST, "the same name again, after the end")
def _(rig: Rig) -> None:
    rig.create("case").close()
    rig.create("case").close()


@case(FIRST, "a name of 63 bytes")
def _(rig: Rig) -> None:
    rig.create("n" * 63).close()


def raw_name(rig: Rig, raw: bytes) -> None:
    """Past the check of names in our own code."""
    with rig.device() as device:
        rig.calls.ioctl(device.fileno(), liveupdate.CREATE_SESSION, bytearray(SESSION.pack(SESSION.size, -1, raw)))


@case(FIRST, "the kernel, asked for a name of 64 bytes", "EINVAL")
def _(rig: Rig) -> None:
    raw_name(rig, b"n" * 64)


@case(FIRST, "the kernel, asked for an empty name", "EINVAL")
def _(rig: Rig) -> None:
    raw_name(rig, b"")


@case(FIRST, "a request nobody knows", "EINVAL")
def _(rig: Rig) -> None:
    with rig.device() as device:
        rig.calls.ioctl(device.fileno(), 0xBA3F, bytearray(16))


@case(FIRST, "retrieve what was made in this kernel", "SessionLostError ENOENT")
def _(rig: Rig) -> None:
    with rig.create("case"):
        rig.retrieve("case").close()


@case(FIRST, "does it live: before, meanwhile, after", "False True False")
def _(rig: Rig) -> str:
    before = rig.lives("case")
    with rig.create("case"):
        meanwhile = rig.lives("case")
    return f"{before} {meanwhile} {rig.lives('case')}"


@case(FIRST, "does it live: one of two descriptors closed, both", "True False")
def _(rig: Rig) -> str:
    session = rig.create("case")
    other = rig.share(session.fileno())
    session.close()
    one = rig.lives("case")
    rig.calls.close(other)
    return f"{one} {rig.lives('case')}"


@case(FIRST, "the device is open already", "DeviceBusyError EBUSY")
def _(rig: Rig) -> None:
    with rig.device():
        rig.device().close()


@case(FIRST, "the name of an inherited session", "case with a blank")
def _(rig: Rig) -> str:
    with rig.create("case with a blank") as session:
        other = Session.inherited(rig.share(session.fileno()), rig.calls)
        other.close()
        return other.name


@case(FIRST, "a memfd is no session", "NotASessionError ENOTTY")
def _(rig: Rig) -> None:
    with memfd() as fd:
        Session.inherited(fd, rig.calls)


@case(FIRST, "the device is no session", "NotASessionError EINVAL")
def _(rig: Rig) -> None:
    with rig.device() as device:
        Session.inherited(device.fileno(), rig.calls)


@case(FIRST, "preserve a memfd")
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd() as fd:
        session.preserve_fd(fd, 0)


@case(FIRST, "preserve an empty memfd")
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd(b"") as fd:
        session.preserve_fd(fd, LARGEST)


@case(FIRST, "preserve a memfd without seals")
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd(seals=False) as fd:
        session.preserve_fd(fd, 1)


@case(FIRST, "preserve by a descriptor for reading")
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd() as fd:
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            session.preserve_fd(reading, 1)
        finally:
            os.close(reading)


@case(FIRST, "preserve a tmpfs file without a name")
def _(rig: Rig) -> None:
    fd = nameless(rig)
    try:
        with rig.create("case") as session:
            session.preserve_fd(fd, 1)
    finally:
        os.close(fd)


@case(FIRST, "a tmpfs file with a name", "NotPreservableError ENOENT")
def _(rig: Rig) -> None:
    path = rig.tmpfs / "kupgrade-case"
    with rig.create("case") as session, path.open("wb") as file:
        try:
            session.preserve_fd(file.fileno(), 1)
        finally:
            path.unlink()


@case(FIRST, "a file on a disk", "NotPreservableError ENOENT")
def _(rig: Rig) -> None:
    with rig.create("case") as session, Path(__file__).open("rb") as file:
        session.preserve_fd(file.fileno(), 1)


@case(FIRST, "a pipe", "NotPreservableError ENOENT")
def _(rig: Rig) -> None:
    ends = os.pipe()
    try:
        with rig.create("case") as session:
            session.preserve_fd(ends[0], 1)
    finally:
        for each in ends:
            os.close(each)


@case(FIRST, "a closed descriptor", "LiveUpdateError EBADF")
def _(rig: Rig) -> None:
    with rig.create("case") as session:
        session.preserve_fd(987654, 1)


@case(FIRST, "the same file twice", "PreservedTwiceError EBUSY")
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd() as fd:
        session.preserve_fd(fd, 1)
        session.preserve_fd(fd, 2)


@case(FIRST, "the same file in two sessions", "PreservedTwiceError EBUSY")
def _(rig: Rig) -> None:
    with rig.create("case") as session, rig.create("other") as other, memfd() as fd:
        session.preserve_fd(fd, 1)
        other.preserve_fd(fd, 1)


@case(FIRST, "the same file again, when its session is closed")
def _(rig: Rig) -> None:
    with memfd() as fd:
        for _round in range(2):
            with rig.create("case") as session:
                session.preserve_fd(fd, 1)


@case(FIRST, "a token used twice", "TokenUsedError EEXIST")
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd() as one, memfd() as two:
        session.preserve_fd(one, 1)
        session.preserve_fd(two, 1)


@case(FIRST, "take a file out where it was put in", "WrongSideError EINVAL")
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd() as fd:
        session.preserve_fd(fd, 1)
        session.retrieve_fd(1)


@case(FIRST, "finish an outgoing session", "WrongSideError EINVAL")
def _(rig: Rig) -> None:
    with rig.create("case") as session:
        session.finish()


@case(FIRST, "a preserved file cannot grow, but be written", "EPERM", real_only=True)
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd() as fd:
        session.preserve_fd(fd, 1)
        os.pwrite(fd, b"x", 0)
        os.ftruncate(fd, len(CONTENT) + 1)


@case(FIRST, "a preserved file cannot shrink", "EPERM", real_only=True)
def _(rig: Rig) -> None:
    with rig.create("case") as session, memfd() as fd:
        session.preserve_fd(fd, 1)
        os.ftruncate(fd, 1)


def leave(rig: Rig) -> None:
    """Make what the second kernel will find; the sessions stay open in `rig.kept`."""
    for name in ("kept", "never", "unread", "closed", "moved"):
        rig.kept[name] = rig.create(name)
    with memfd() as fd:
        os.lseek(fd, 5, os.SEEK_SET)
        rig.kept["kept"].preserve_fd(fd, 0)
        os.pwrite(fd, b"WHAT", 0)  # written after it was preserved
    fd = nameless(rig, b"nameless")
    rig.kept["kept"].preserve_fd(fd, LARGEST)
    os.close(fd)
    with memfd(b"") as fd:
        rig.kept["kept"].preserve_fd(fd, 7)
    with memfd(b"sealed") as fd:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        rig.kept["kept"].preserve_fd(fd, 8)
    for name in ("never", "unread", "closed", "moved"):
        with memfd(name.encode()) as fd:
            rig.kept[name].preserve_fd(fd, 1)
    rig.kept.pop("closed").close()
    fd = rig.kept["moved"].detach()
    rig.kept["moved"] = Session.inherited(rig.share(fd), rig.calls)
    rig.calls.close(fd)


# The second kernel


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


@case(SECOND, "the device is there and free")
def _(rig: Rig) -> None:
    rig.device(liveupdate.BUSY_DEADLINE).close()


@case(SECOND, "does an incoming session count as living", "False")
def _(rig: Rig) -> str:
    return str(rig.lives("kept"))


@case(SECOND, "retrieve a session", "kept")
def _(rig: Rig) -> str:
    rig.kept["kept"] = rig.retrieve("kept")
    return rig.kept["kept"].name


@case(SECOND, "retrieve it twice", "AlreadyRetrievedError EINVAL")
def _(rig: Rig) -> None:
    rig.retrieve("kept").close()


@case(SECOND, "its file is as it was last written", "True 5")
def _(rig: Rig) -> str:
    rig.files["0"] = fd = rig.kept["kept"].retrieve_fd(0)
    return f"{content(fd) == b'WHAT' + CONTENT[4:]} {os.lseek(fd, 0, os.SEEK_CUR)}"


@case(SECOND, "the file that had no name", "b'nameless'")
def _(rig: Rig) -> str:
    fd = rig.kept["kept"].retrieve_fd(LARGEST)
    try:
        return repr(content(fd))
    finally:
        os.close(fd)


@case(SECOND, "the empty file", "b''")
def _(rig: Rig) -> str:
    fd = rig.kept["kept"].retrieve_fd(7)
    try:
        return repr(content(fd))
    finally:
        os.close(fd)


@case(SECOND, "the sealed file", "b'sealed' True")
def _(rig: Rig) -> str:
    fd = rig.kept["kept"].retrieve_fd(8)
    try:
        return f"{content(fd)!r} {fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS}"
    finally:
        os.close(fd)


@case(SECOND, "a file retrieved twice is the same file by another descriptor", "True True")
def _(rig: Rig) -> str:
    fd, first = rig.kept["kept"].retrieve_fd(0), rig.files["0"]
    try:
        return f"{fd != first} {os.path.sameopenfile(fd, first)}"
    finally:
        os.close(fd)


@case(SECOND, "a token that was never given", "TokenUnknownError ENOENT")
def _(rig: Rig) -> None:
    rig.kept["kept"].retrieve_fd(99)


@case(SECOND, "put a file into an incoming session", "WrongSideError EINVAL")
def _(rig: Rig) -> None:
    with memfd() as fd:
        rig.kept["kept"].preserve_fd(fd, 100)


@case(SECOND, "hand a retrieved file on before the session is finished", "PreservedTwiceError EBUSY")
def _(rig: Rig) -> None:
    with rig.create("kept") as session:
        session.preserve_fd(rig.files["0"], 0)


@case(SECOND, "finish, twice")
def _(rig: Rig) -> None:
    rig.kept["kept"].finish()
    rig.kept["kept"].finish()


@case(SECOND, "retrieve a file after finish", "TokenUnknownError ENOENT")
def _(rig: Rig) -> None:
    rig.kept["kept"].retrieve_fd(0)


@case(SECOND, "retrieve the session after finish, before it is closed", "AlreadyRetrievedError EINVAL")
def _(rig: Rig) -> None:
    rig.retrieve("kept").close()


@case(SECOND, "retrieve it after it was closed", "SessionLostError ENOENT")
def _(rig: Rig) -> None:
    rig.kept.pop("kept").close()
    rig.retrieve("kept").close()


@case(SECOND, "the file is an ordinary one now", "True")
def _(rig: Rig) -> str:
    fd = rig.files["0"]
    os.ftruncate(fd, len(CONTENT) + 1)
    return str(content(fd) == b"WHAT" + CONTENT[4:] + b"\0")


@case(SECOND, "hand it on, by the same name")
def _(rig: Rig) -> None:
    rig.kept["kept"] = rig.create("kept")
    rig.kept["kept"].preserve_fd(rig.files.pop("0"), 0)


@case(SECOND, "a session closed before the kexec", "SessionLostError ENOENT")
def _(rig: Rig) -> None:
    rig.retrieve("closed").close()


@case(SECOND, "a session that never was", "SessionLostError ENOENT")
def _(rig: Rig) -> None:
    rig.retrieve("nobody").close()


@case(SECOND, "a session whose descriptor moved to another holder", "b'moved'")
def _(rig: Rig) -> str:
    with rig.retrieve("moved") as session:
        fd = session.retrieve_fd(1)
    try:
        return repr(content(fd))  # the session is closed, the file lives on
    finally:
        os.close(fd)


@case(SECOND, "a session closed unread is gone", "SessionLostError ENOENT")
def _(rig: Rig) -> None:
    rig.retrieve("unread").close()
    rig.retrieve("unread").close()


@case(SECOND, "the name of one that waits can be used")
def _(rig: Rig) -> None:
    rig.create("never").close()


# The third kernel


@case(THIRD, "what was handed on again", "True")
def _(rig: Rig) -> str:
    with rig.retrieve("kept") as session:
        fd = session.retrieve_fd(0)
        session.finish()
    try:
        return str(content(fd) == b"WHAT" + CONTENT[4:] + b"\0")
    finally:
        os.close(fd)


@case(THIRD, "what nobody retrieved in the second kernel", "SessionLostError ENOENT")
def _(rig: Rig) -> None:
    rig.retrieve("never").close()

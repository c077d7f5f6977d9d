"""What /dev/liveupdate answers in the kernel in which a session is made, and what is left there for the next one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kupgrade.kernel import liveupdate
from kupgrade.kernel.liveupdate import SESSION, Session
from tests.fakes.liveupdate_rig import CONTENT, LARGEST, SEALS, Case, Rig, case, memfd, nameless

FIRST: list[Case] = []  # each leaves nothing behind


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

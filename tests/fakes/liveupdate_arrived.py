"""What /dev/liveupdate answers in the kernels to which a session is handed over."""

from __future__ import annotations

import fcntl
import os

from kupgrade.kernel import liveupdate
from tests.fakes.liveupdate_rig import CONTENT, LARGEST, SEALS, Case, Rig, case, content, memfd

SECOND: list[Case] = []  # in this order, after `leave`
THIRD: list[Case] = []  # in this order, after another kexec


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

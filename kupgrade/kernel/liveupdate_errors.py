"""What /dev/liveupdate says no to, each with its reason: requests, and the class of every errno of theirs.

Source: include/uapi/linux/liveupdate.h; which errno means what was seen with Linux 7.2 and 7.3.
"""

from __future__ import annotations

import errno

from kupgrade.errors import KernelError

# _IO(0xBA, number): no size and no direction in the request; the size is the first field of every argument.
CREATE_SESSION, RETRIEVE_SESSION = 0xBA00, 0xBA01
PRESERVE_FD, RETRIEVE_FD, FINISH, GET_NAME = 0xBA40, 0xBA41, 0xBA42, 0xBA43

NAME_LENGTH = 64  # bytes of a session's name, with the NUL


class LiveUpdateError(KernelError):
    """The live update device said no, in a way that has no class of its own below; `errno` tells."""

    reason = ""
    advice = ""

    def __init__(self, call: str, path: str, errno: int) -> None:
        super().__init__(call, path, errno, self.advice)
        if self.reason:
            self.why = f"{self.reason} ({self.why})"


class NotThereError(LiveUpdateError):
    """There is no such device."""

    reason = "this kernel has no live update device"
    advice = (
        "It needs CONFIG_LIVEUPDATE, and kho=on liveupdate=on on its command line, and room for KHO's scratch areas"
    )


class NotAllowedError(LiveUpdateError):
    """The device may not be opened."""

    reason = "the device may not be opened by this user"
    advice = "Run as root"


class DeviceBusyError(LiveUpdateError):
    """Another process has the device open, and went on having it."""

    reason = "another process holds the device, and only one may"
    advice = "See who it is with fuser /dev/liveupdate; it should hold it for moments only"


class HandoverDamagedError(LiveUpdateError):
    """What was handed over cannot be read, all of it; so it is until the next boot."""

    reason = "the kernel cannot read what the previous one handed over"
    advice = "All sessions are lost; the memory they take is free after another boot"


class BadNameError(LiveUpdateError):
    """A session cannot have this name."""

    reason = f"a session's name has 1 to {NAME_LENGTH - 1} bytes and no NUL"


class SessionExistsError(LiveUpdateError):
    """There is an outgoing session of that name: somebody holds it open."""

    reason = "an outgoing session of that name is held open"
    advice = "Close it, or end the process that holds it: what is in it is given up then"


class SessionLostError(LiveUpdateError):
    """No session of that name was handed over, or it is finished already."""

    reason = "the previous kernel handed over no session of that name, or it is finished already"
    advice = "It is lost when nobody held it open at the kexec, and with any reset or kexec_load(2)"


class AlreadyRetrievedError(LiveUpdateError):
    """The session was retrieved before and is still open somewhere."""

    reason = "the session was retrieved before, and is still open"
    advice = "Take it over from the process that has it"


class NotPreservableError(LiveUpdateError):
    """No handler in the kernel knows this kind of file."""

    reason = "the kernel can keep no file of this kind: memfds, and tmpfs files without a name, it can"


class PreservedTwiceError(LiveUpdateError):
    """The file is in a session already: this one, another one, or an incoming one that is not finished."""

    reason = "the file is in a session already, or in an incoming one that is not finished"
    advice = "Finish the incoming session first"


class TokenUsedError(LiveUpdateError):
    """The token stands for another file of the session."""

    reason = "the token stands for another file of this session"


class TokenUnknownError(LiveUpdateError):
    """There is no file of that token in the session, or the session is finished."""

    reason = "no file of that token is in the session, or the session is finished"


class WrongSideError(LiveUpdateError):
    """Files are put into outgoing sessions only, and taken out of incoming ones only."""

    reason = "files are put into outgoing sessions only, and taken out of incoming ones only"


class NotASessionError(LiveUpdateError):
    """The descriptor is not one of a session."""

    reason = "the descriptor is not a session's"


class FullError(LiveUpdateError):
    """No more room: for sessions, for files in a session, or in memory outside of KHO's scratch areas."""

    reason = "there is no room left in the session, among the sessions, or in memory that may be kept"
    advice = "Free memory, or keep less: what lies in KHO's scratch areas cannot be used"


_WORDS = {
    CREATE_SESSION: "CREATE_SESSION",
    RETRIEVE_SESSION: "RETRIEVE_SESSION",
    PRESERVE_FD: "PRESERVE_FD",
    RETRIEVE_FD: "RETRIEVE_FD",
    FINISH: "FINISH",
    GET_NAME: "GET_NAME",
}
_OPENING = {
    errno.ENOENT: NotThereError,
    errno.ENODEV: NotThereError,
    errno.ENXIO: NotThereError,
    errno.EBUSY: DeviceBusyError,
    errno.EACCES: NotAllowedError,
    errno.EPERM: NotAllowedError,
    errno.EIO: HandoverDamagedError,
}
_CALLS: dict[tuple[int, int], type[LiveUpdateError]] = {
    (CREATE_SESSION, errno.EEXIST): SessionExistsError,
    (CREATE_SESSION, errno.EINVAL): BadNameError,
    (CREATE_SESSION, errno.ENOMEM): FullError,
    (RETRIEVE_SESSION, errno.ENOENT): SessionLostError,
    (RETRIEVE_SESSION, errno.EINVAL): AlreadyRetrievedError,  # the name was looked at before
    (PRESERVE_FD, errno.ENOENT): NotPreservableError,
    (PRESERVE_FD, errno.EOPNOTSUPP): NotPreservableError,
    (PRESERVE_FD, errno.EBUSY): PreservedTwiceError,
    (PRESERVE_FD, errno.EEXIST): TokenUsedError,
    (PRESERVE_FD, errno.EINVAL): WrongSideError,
    (PRESERVE_FD, errno.ENOSPC): FullError,
    (PRESERVE_FD, errno.ENOMEM): FullError,
    (RETRIEVE_FD, errno.ENOENT): TokenUnknownError,
    (RETRIEVE_FD, errno.EINVAL): WrongSideError,
    (FINISH, errno.EINVAL): WrongSideError,
    (GET_NAME, errno.ENOTTY): NotASessionError,
    (GET_NAME, errno.EBADF): NotASessionError,
    (GET_NAME, errno.EINVAL): NotASessionError,
}


def opening(path: str, number: int) -> LiveUpdateError:
    """The error of open(2) on the device."""
    return _OPENING.get(number, LiveUpdateError)("open", path, number)


def refusal(request: int, about: str, number: int) -> LiveUpdateError:
    """The error of an ioctl(2); `about`: the session."""
    return _CALLS.get((request, number), LiveUpdateError)(_WORDS[request], about, number)

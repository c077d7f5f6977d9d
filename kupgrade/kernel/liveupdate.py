"""/dev/liveupdate: files kept in memory over a kexec, in sessions that are known by their names.

Source: include/uapi/linux/liveupdate.h (the same in Linux 7.2 and 7.3), Documentation/userspace-api/liveupdate.rst.
The kernel calls itself the Live Update Orchestrator; it keeps files that handlers know: memfds, and files on tmpfs
that have no name any more. Both come back as memfds.

A session is *outgoing* in the kernel that made it and *incoming* in the one that was started by kexec_file_load(2) and
reboot(2). An outgoing session lives as long as a descriptor of it is open, in any process: when the last one is closed
everything in it is given up, without a word. An incoming one that nobody retrieves is lost with the next kexec.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

from kupgrade.kernel.liveupdate_errors import (
    CREATE_SESSION,
    FINISH,
    GET_NAME,
    NAME_LENGTH,
    PRESERVE_FD,
    RETRIEVE_FD,
    RETRIEVE_SESSION,
    BadNameError,
    SessionExistsError,
    opening,
    refusal,
)

DEVICE = "dev/liveupdate"

SESSION = struct.Struct("=Ii64s")  # size, fd (out), name
TRANSFER = struct.Struct("=IiQ")  # size, fd, token
END = struct.Struct("=II")  # size, reserved
NAME = struct.Struct("=II64s")  # size, reserved, name (out)

# Seconds. One process at a time has the device open, for as long as a call takes.
BUSY_DEADLINE = 5.0
BUSY_PAUSE = 0.02


class Calls(Protocol):
    """What this module asks of the kernel; every method raises OSError."""

    def open_device(self, path: Path) -> int:
        """open(2) for reading and writing, close-on-exec."""
        ...

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        """ioctl(2); the kernel writes into `argument`."""
        ...

    def close(self, fd: int) -> None:
        """close(2)."""
        ...


class KernelCalls:
    """The real calls."""

    __slots__ = ()

    def open_device(self, path: Path) -> int:
        """See Calls."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        """See Calls."""
        fcntl.ioctl(fd, request, argument, True)

    def close(self, fd: int) -> None:
        """See Calls."""
        os.close(fd)


KERNEL = KernelCalls()


def _ask(calls: Calls, fd: int, request: int, about: str, argument: bytearray) -> None:
    if fd < 0:
        raise refusal(request, about, errno.EBADF)
    try:
        calls.ioctl(fd, request, argument)
    except OSError as error:
        raise refusal(request, about, error.errno or errno.EIO) from error


class _Open:
    """A descriptor that is closed once; afterwards calls fail with EBADF."""

    __slots__ = ("_calls", "_fd")

    def __init__(self, fd: int, calls: Calls) -> None:
        self._fd = fd
        self._calls = calls

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; done as well when it is closed."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._calls.close(fd)

    def __exit__(self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self.close()


class Session(_Open):
    """An open session. The descriptor is close-on-exec. Methods raise LiveUpdateError, mostly as one of its classes.

    Closing an outgoing session gives up what is in it; closing an incoming one finishes it, so what was not taken
    out of it is gone.
    """

    __slots__ = ("name",)

    def __init__(self, fd: int, name: str, calls: Calls = KERNEL) -> None:
        super().__init__(fd, calls)
        self.name = name

    def __enter__(self) -> Session:
        return self

    @classmethod
    def inherited(cls, fd: int, calls: Calls = KERNEL) -> Session:
        """A session whose descriptor came from another process; the kernel is asked for its name.

        Raises NotASessionError, and leaves the descriptor open then.
        """
        argument = bytearray(NAME.pack(NAME.size, 0, b""))
        _ask(calls, fd, GET_NAME, f"descriptor {fd}", argument)
        return cls(fd, os.fsdecode(NAME.unpack(argument)[2].partition(b"\0")[0]), calls)

    def detach(self) -> int:
        """The descriptor, which is the caller's to close from now on."""
        fd, self._fd = self._fd, -1
        return fd

    def preserve_fd(self, fd: int, token: int) -> None:
        """Keep the file behind `fd` under `token` (64 bits); `fd` may be closed afterwards.

        From now on the file's size is fixed; bytes inside it may be written until the kexec and arrive. Holes are
        filled. Raises NotPreservableError, PreservedTwiceError, TokenUsedError, WrongSideError, FullError.
        """
        _ask(self._calls, self._fd, PRESERVE_FD, self.name, bytearray(TRANSFER.pack(TRANSFER.size, fd, token)))

    def retrieve_fd(self, token: int) -> int:
        """A new descriptor, close-on-exec, of the file kept under `token`; any number of times until `finish`.

        The file keeps seals and offset. Raises TokenUnknownError, WrongSideError; what failed once fails always.
        """
        argument = bytearray(TRANSFER.pack(TRANSFER.size, -1, token))
        _ask(self._calls, self._fd, RETRIEVE_FD, self.name, argument)
        return int(TRANSFER.unpack(argument)[1])

    def finish(self) -> None:
        """All that is wanted is taken out: retrieved files become ordinary ones, the others are freed.

        Done as well when it is finished. Raises WrongSideError.
        """
        _ask(self._calls, self._fd, FINISH, self.name, bytearray(END.pack(END.size, 0)))


def _name(name: str) -> bytes:
    raw = os.fsencode(name)
    if not 0 < len(raw) < NAME_LENGTH or b"\0" in raw:
        raise BadNameError("session name", repr(name), errno.EINVAL)
    return raw


class Device(_Open):
    """The open device. No other process can open it meanwhile: hold it for single calls only."""

    __slots__ = ()

    def __enter__(self) -> Device:
        return self

    @classmethod
    def opened(cls, root: Path = Path("/"), calls: Calls = KERNEL, patience: float = BUSY_DEADLINE) -> Device:
        """Open it, waiting up to `patience` seconds for another process to let go of it.

        Raises NotThereError, NotAllowedError, DeviceBusyError, HandoverDamagedError (the first opening reads what was
        handed over).
        """
        path = root / DEVICE
        end = time.monotonic() + patience
        while True:
            try:
                return cls(calls.open_device(path), calls)
            except OSError as error:
                number = error.errno or errno.EIO
                if number != errno.EBUSY or time.monotonic() >= end:
                    raise opening(str(path), number) from error
            time.sleep(BUSY_PAUSE)

    def _session(self, call: int, name: str) -> Session:
        argument = bytearray(SESSION.pack(SESSION.size, -1, _name(name)))
        _ask(self._calls, self._fd, call, name, argument)
        return Session(SESSION.unpack(argument)[1], name, self._calls)

    def create_session(self, name: str) -> Session:
        """A new, empty outgoing session. Raises SessionExistsError, BadNameError, FullError.

        An incoming session of that name is no hindrance.
        """
        return self._session(CREATE_SESSION, name)

    def retrieve_session(self, name: str) -> Session:
        """The incoming session of that name, once. Raises SessionLostError, AlreadyRetrievedError, BadNameError."""
        return self._session(RETRIEVE_SESSION, name)

    def session_lives(self, name: str) -> bool:
        """Whether any process holds an outgoing session of that name.

        The kernel has no question for that: a session of the name is made, and closed again at once.
        """
        try:
            self.create_session(name).close()
        except SessionExistsError:
            return True
        return False


def create_session(name: str, root: Path = Path("/"), calls: Calls = KERNEL) -> Session:
    """Device.create_session, with the device open for this call only."""
    with Device.opened(root, calls) as device:
        return device.create_session(name)


def retrieve_session(name: str, root: Path = Path("/"), calls: Calls = KERNEL) -> Session:
    """Device.retrieve_session, with the device open for this call only."""
    with Device.opened(root, calls) as device:
        return device.retrieve_session(name)


def session_lives(name: str, root: Path = Path("/"), calls: Calls = KERNEL) -> bool:
    """Device.session_lives, with the device open for this call only."""
    with Device.opened(root, calls) as device:
        return device.session_lives(name)

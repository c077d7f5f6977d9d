"""The process that holds what is preserved of descriptor stores, in the old kernel and in every one after it.

Crash windows: in the old kernel the originals stay in the service manager, so whatever ends here costs nothing; the
holder outlives a killed worker, and the jump is not made without its session. In the next kernel nothing but that
session has them: it is retrieved once, finished and made again at once, so that the way back has them, too. They are
let go of when they are in the stores again; what is in a store then is the service's alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host.kept_descriptors import DescriptorIndex, KeptDescriptor, read_index
from kupgrade.host.preserved import INDEX_TOKEN, MAX_INDEX
from kupgrade.kernel import liveupdate
from kupgrade.kernel.libc import reported
from kupgrade.machine import detached
from kupgrade.machine.holding import Post, apology, heard, tell
from kupgrade.machine.places import Places
from kupgrade.machine.preserving import content, make_room, preserve
from kupgrade.model.codec import decode, encode

NAME = "descriptor-holder"
CHECK = b"check"
GIVE = b"give "
_CHUNK = 1 << 20
_AT_ONCE = 64  # descriptors in a message
_LONGEST = 1 << 20  # bytes of one


class DescriptorsLostError(KupgradeError):
    """No kernel will hand these over any more: that is known, not guessed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A duplicate of a stored descriptor, the caller's to close. `writable`: how the original was opened."""

    unit: str
    name: str
    fd: int
    writable: bool = True


@dataclass(frozen=True, slots=True)
class Checked:
    """A descriptor that came, and which file it is here. `wrong`: why it must not be given back."""

    descriptor: KeptDescriptor
    device: int
    inode: int
    wrong: str = ""


def post(places: Places) -> Post:
    """Where the holder is found."""
    return Post(places, NAME)


def start(places: Places, session: str, begin: Callable[[], Held]) -> DescriptorIndex:
    """Fork it, and come back when it has them in a session: `begin` is called in there.

    It goes on when whoever waits for it here was killed meanwhile: a session is retrieved once only, and the next one
    who asks finds it. Raises DescriptorsLostError when there are none and never will be.
    """
    answer = detached.start(places.root, "descriptor holder", lambda writer: _work(places, session, begin, writer))
    told = heard(answer, "index", "descriptor holder", DescriptorsLostError)
    return decode(DescriptorIndex, told["index"], "descriptor holder")


def _work(places: Places, session: str, begin: Callable[[], Held], writer: int) -> int:
    try:
        held = begin()
        listener = post(places).take(session)
    except (KupgradeError, OSError) as error:
        os.write(writer, apology(error))
        return 1
    tell(writer, {"index": encode(held.index)})
    post(places).serve(listener, held.drop, held.answer)
    return 0


@dataclass
class Held:
    """Descriptors in this kernel, by token, and the session in which they go on to the next one."""

    index: DescriptorIndex
    fds: Mapping[int, int]
    session: liveupdate.Session | None
    _checked: tuple[Checked, ...] = field(default=())

    def drop(self) -> None:
        """Let go of all of them. What is in a store goes on there, so nothing is cut."""
        if self.session is not None:
            self.session.close()
        for fd in self.fds.values():
            os.close(fd)

    def check(self) -> tuple[Checked, ...]:
        """All of them, read through once."""
        if not self._checked:
            wrong = {token: self._wrong(token) for token in self.index.tokens}
            self._checked = tuple(self._seen(each, wrong[each.token]) for each in self.index.descriptors)
        return self._checked

    def _seen(self, descriptor: KeptDescriptor, wrong: str) -> Checked:
        found = os.fstat(self.fds[descriptor.token])
        return Checked(descriptor, found.st_dev, found.st_ino, wrong)

    def _wrong(self, token: int) -> str:
        told = next(each for each in self.index.descriptors if each.token == token)
        fd = self.fds[token]
        if (size := os.fstat(fd).st_size) != told.size:
            return f"it has {size} bytes of {told.size}"
        if (seals := fcntl.fcntl(fd, fcntl.F_GET_SEALS)) != told.seals:
            return f"its seals are {seals:#x}, they were {told.seals:#x}"
        return "" if checksum(fd) == told.crc else "its checksum differs"

    def answer(self, line: socket.socket, word: bytes) -> None:
        """A question: what came, or the descriptors of a unit."""
        if word == CHECK:
            self._tell(line, self.check())
        elif word.startswith(GIVE):
            self._give(line, word.removeprefix(GIVE).decode())

    def _tell(self, line: socket.socket, found: Sequence[Checked]) -> None:
        """How many, then all of them: a message has to fit into the socket's buffer (net.core.wmem_default)."""
        line.sendall(str(len(found)).encode())
        for at in range(0, len(found), _AT_ONCE):
            line.sendall(json.dumps([encode(each) for each in found[at : at + _AT_ONCE]]).encode())

    def _give(self, line: socket.socket, unit: str) -> None:
        good = [each.descriptor for each in self.check() if each.descriptor.unit == unit and not each.wrong]
        for at in range(0, len(good), _AT_ONCE):
            part = good[at : at + _AT_ONCE]
            with contextlib.ExitStack() as stack:
                fds = [self._opened(each, stack) for each in part]
                socket.send_fds(line, [json.dumps([each.name for each in part]).encode()], fds)

    def _opened(self, descriptor: KeptDescriptor, stack: contextlib.ExitStack) -> int:
        """As it was: what comes through a session can always be written, whatever it had been opened for."""
        fd = self.fds[descriptor.token]
        if descriptor.writable:
            return fd
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, reader)
        return reader


def checksum(fd: int) -> int:
    """CRC-32 of all that is in it; its offset stays."""
    crc = at = 0
    with reported("read", "a stored descriptor"):
        while chunk := os.pread(fd, _CHUNK, at):
            crc, at = zlib.crc32(chunk, crc), at + len(chunk)
    return crc


def hold(session: str, taken: Sequence[Taken], root: Path, calls: liveupdate.Calls = liveupdate.KERNEL) -> Held:
    """In the old kernel: duplicates of stored descriptors into a new session. Raises KernelError."""
    tokens: dict[tuple[int, int], int] = {}
    fds: dict[int, int] = {}
    found: list[KeptDescriptor] = []
    for each in taken:
        status = os.fstat(each.fd)
        token = tokens.setdefault((status.st_dev, status.st_ino), INDEX_TOKEN + 1 + len(tokens))
        if fds.setdefault(token, each.fd) != each.fd:
            os.close(each.fd)  # one file, stored twice
        fd = fds[token]
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        crc = next((one.crc for one in found if one.token == token), None)
        crc = checksum(fd) if crc is None else crc
        found.append(KeptDescriptor(each.unit, each.name, token, status.st_size, crc, seals, each.writable))
    index = DescriptorIndex(tuple(found))
    return Held(index, fds, _preserve(session, index, fds, root, calls))


def fetch(session: str, root: Path, calls: liveupdate.Calls = liveupdate.KERNEL) -> Held:
    """Everything out of the session that came, then into a new one of the same name. Raises KupgradeError."""
    with liveupdate.retrieve_session(session, root, calls) as came:
        stock = came.retrieve_fd(INDEX_TOKEN)
        index = read_index(content(stock, MAX_INDEX))
        os.close(stock)
        make_room(2 * len(index.tokens))  # and once more while they are preserved again
        fds = {token: came.retrieve_fd(token) for token in index.tokens}
        came.finish()
    try:
        again = _preserve(session, index, fds, root, calls)
    except (KupgradeError, OSError) as error:
        # To give them up for it would lose them for sure.
        sys.stderr.write(f"<4>kupgrade: there is no way back with stored descriptors: {error}\n")
        again = None
    return Held(index, fds, again)


def _preserve(
    name: str, index: DescriptorIndex, fds: Mapping[int, int], root: Path, calls: liveupdate.Calls
) -> liveupdate.Session:
    session = liveupdate.create_session(name, root, calls)
    try:
        preserve(session, index, [os.dup(fds[token]) for token in index.tokens])
    except BaseException:
        session.close()
        raise
    return session


def ask_check(places: Places) -> tuple[Checked, ...]:
    """What came, as the holder found it. Raises KupgradeError, also when it does not tell of all."""
    found: list[Checked] = []
    with post(places).call() as line, reported("ask", NAME):
        line.sendall(CHECK)
        count = line.recv(_LONGEST)
        while part := line.recv(_LONGEST):
            found += decode(tuple[Checked, ...], json.loads(part), NAME)
    if not count or len(found) != int(count):
        why = f"it told of {len(found)}" + (f" of {int(count)}" if count else ", and not of how many")
        raise KupgradeError("What came of stored descriptors is not known", why, "Look for its end in the log")
    return tuple(found)


def ask_give(places: Places, unit: str) -> list[tuple[str, int]]:
    """Name and a descriptor of our own, of all that came for a unit and are whole. Raises KupgradeError."""
    found: list[tuple[str, int]] = []
    with post(places).call() as line, reported("ask", NAME):
        line.sendall(GIVE + unit.encode())
        while True:
            names, fds, _flags, _address = socket.recv_fds(line, _LONGEST, _AT_ONCE)
            if not names:
                return found
            found += zip(json.loads(names), fds, strict=True)

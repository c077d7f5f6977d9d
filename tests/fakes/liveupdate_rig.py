"""What the cases of /dev/liveupdate are made of: sessions of one kernel, files to preserve, and what is seen of them.

It and its cases need kupgrade and the standard library only, so that they run in a virtual host as well.
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
from kupgrade.kernel.liveupdate import Calls, Device, Session

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


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)

"""A process that holds what would be gone without it: how it is found, asked, and ended.

Each kind has one state file, which names the process and what it holds, and one socket below /run/kupgrade.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.kernel import proc
from kupgrade.kernel.libc import reported
from kupgrade.kernel.liveupdate_errors import NotThereError, SessionLostError
from kupgrade.machine.places import Places
from kupgrade.model.codec import decode, encode

DONE = b"done"
RELEASE = b"release"
_PATIENCE = 120.0  # seconds; much memory is let go of page by page
_LONGEST = 4096  # bytes of a word


def tell(writer: int, what: dict[str, Any]) -> None:
    """Say what is held. Who waited may have been killed: what is held now would be lost if this ended with it."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as answers:
        json.dump(what, answers)


def apology(error: KupgradeError | OSError) -> bytes:
    """Why a process that was to hold something does not, for whoever started it."""
    what, why = (error.what, error.why) if isinstance(error, KupgradeError) else (str(error), "")
    lost = isinstance(error, NotThereError | SessionLostError)
    return json.dumps({"what": what, "why": why, "lost": lost}).encode()


def heard(answer: bytes, wanted: str, who: str, lost: type[KupgradeError]) -> dict[str, Any]:
    """What it said. Without `wanted` it is an apology, and raised: as `lost` when it has come to nothing for good."""
    told: dict[str, Any] = json.loads(answer or b"{}")
    if wanted not in told:
        kind = lost if told.get("lost") else KupgradeError
        raise kind(str(told.get("what", f"The {who} ended without a word")), str(told.get("why", "")))
    return told


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds which store: a PID counts only together with its start time (clock ticks)."""

    pid: int
    starttime: int
    store: str


@dataclass(frozen=True, slots=True)
class Post:
    """Where the holder of one kind is found; `name`: of that kind."""

    places: Places
    name: str

    @property
    def _state(self) -> Path:
        return self.places.run / f"{self.name}.json"

    @property
    def _socket(self) -> Path:
        return self.places.run / f"{self.name}.socket"

    def holder(self, store: str) -> Holder | None:
        """The process that holds this store, if it lives."""
        try:
            found = decode(Holder, json.loads(self._state.read_text()), self.name)
            process = proc.process(found.pid)
        except (OSError, ValueError, KupgradeError):
            return None
        lives = process.starttime == found.starttime and process.state not in "ZX"
        return found if lives and found.store == store else None

    def call(self) -> socket.socket:
        """A line to the holder, for one word; its messages keep their borders. Raises KernelError."""
        with reported("connect", self._socket):
            line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                line.settimeout(_PATIENCE)
                line.connect(str(self._socket))
            except OSError:
                line.close()
                raise
        return line

    def release(self, store: str, what: str) -> None:
        """Have it drop what it holds, and end. Without one there is nothing to do. Raises KupgradeError."""
        if self.holder(store) is None:
            return
        with self.call() as line, reported("release", what):
            line.sendall(RELEASE)
            if line.recv(len(DONE)) != DONE:
                raise KupgradeError(f"The preserved {what} were not let go", "their holder gave no answer")

    # -- the holder's side

    def take(self, store: str) -> socket.socket:
        """This process holds the store from now on; the socket at which it is asked."""
        self._socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        listener.bind(str(self._socket))
        self._socket.chmod(0o600)
        listener.listen(4)
        mine = Holder(os.getpid(), proc.process(os.getpid()).starttime, store)
        self._state.write_text(json.dumps(encode(mine)))
        return listener

    def serve(
        self,
        listener: socket.socket,
        drop: Callable[[], None],
        answer: Callable[[socket.socket, bytes], None] | None = None,
    ) -> None:
        """Wait for the word that all of it is dead, which ends this; other words are `answer`'s."""
        while True:
            line, _ = listener.accept()
            with line, contextlib.suppress(OSError):
                word = line.recv(_LONGEST)
                if word == RELEASE:
                    drop()
                    self._state.unlink(missing_ok=True)
                    self._socket.unlink(missing_ok=True)
                    line.sendall(DONE)
                    return
                if answer is not None and word:
                    answer(line, word)

"""The host's end of the agent in the virtual host: requests and answers as JSON lines over a virtio-serial socket."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.host.command import Completed
from kupgrade.rehearsal.qemu import CLOSING, connect

CHUNK = 48 * 1024  # bytes of a file in one message
CONSOLE_LINES = 30  # of a console, in an error
# Where a message can begin behind one that was torn off; in a text these quotes would be escaped.
_BEGINS = re.compile(rb'\{"(?:hello|id)":')


@dataclass(frozen=True, slots=True)
class Hello:
    """One boot of the virtual host, as its agent introduced itself.

    `ahead`: seconds by which its clock is ahead of ours (a kernel reads the hardware clock in whole seconds).
    """

    boot_id: str
    release: str
    uptime: float
    agent: str
    ahead: float


def messages(line: bytes) -> Iterator[dict[str, Any]]:
    """The messages of a line: one, or what is whole of several, when an agent fell silent in the middle of one."""
    starts = [0, *(match.start() for match in _BEGINS.finditer(line) if match.start() > 0)]
    for start in starts:
        with suppress(ValueError):
            value = json.loads(line[start:])
            if isinstance(value, dict):
                yield value
                return


def console_end(path: Path) -> str:
    """The last lines of a serial log; of a machine that does not answer they often say why."""
    with suppress(OSError):
        lines = path.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
        return "\n".join("".join(c for c in line if c.isprintable()) for line in lines)
    return ""


class GuestGoneError(KupgradeError):
    """The virtual host crossed, was reset or fell silent while a request was open."""


class Link:
    """A connection to the agent; one at a time per virtual host.

    An agent may fall silent at any byte, for good or until another kernel's agent speaks on the same port. A request
    that is open then fails; the next one waits until an agent says hello again, so that none piles up.
    """

    def __init__(self, path: Path) -> None:
        self._socket = connect(path, 20.0)
        self._console = path.with_name("serial.log")
        self._changed = threading.Condition()
        self._answers: dict[str, dict[str, Any]] = {}
        self._open: set[str] = set()
        self._streams: dict[str, Callable[[str], None]] = {}
        self._closed = False
        self._agent = ""
        self._hellos = 0
        self._silent = False
        self.boots: list[Hello] = []
        self.on_hello: Callable[[Hello], None] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                for message in messages(line):
                    with suppress(KeyError, TypeError):  # not of the agent's kind
                        self._take(message)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        if "hello" in message:
            fact = message["hello"]
            hello = Hello(fact["boot_id"], fact["release"], fact["uptime"], fact["agent"], fact["time"] - time.time())
            with self._changed:
                self._agent = hello.agent
                self._hellos += 1
                self._silent = False
                new = not self.boots or self.boots[-1].boot_id != hello.boot_id
                if new:
                    self.boots.append(hello)
                self._changed.notify_all()
            if new and self.on_hello is not None:
                self.on_hello(hello)
        elif "line" in message:
            stream = self._streams.get(message["id"])
            if stream is not None:
                stream(message["line"])
        else:
            with self._changed:
                if message["id"] in self._open:
                    self._answers[message["id"]] = message
                    self._changed.notify_all()

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._socket.sendall(
                b"\n" + json.dumps(message).encode() + b"\n"
            )  # apart from one the old kernel half took
        except OSError as error:
            raise GuestGoneError("the virtual host's control connection ended", str(error)) from error

    def wait_boot(self, timeout: float, after: int = 0) -> Hello:
        """The boot number `after` (0: the first seen), asking once a second for up to `timeout` seconds."""
        self._ask_until(lambda: len(self.boots) > after, timeout, "the virtual host did not come up")
        return self.boots[-1]

    def wait_answer(self, timeout: float) -> None:
        """Until an agent, of whichever boot, says hello when asked; GuestGoneError after `timeout` seconds."""
        heard = self._hellos
        self._ask_until(lambda: self._hellos > heard, timeout, "the virtual host does not answer")

    def _ask_until(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline or self._closed:
                said = console_end(self._console)
                why = f"no word from it for {timeout:g} s" + (f"; the end of its console:\n{said}" if said else "")
                raise GuestGoneError(what, why)
            self._send({"hello": True})
            with self._changed:
                self._changed.wait_for(lambda: done() or self._closed, 1.0)

    def request(
        self, message: Mapping[str, Any], timeout: float, stream: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Send one request and wait for its answer; GuestGoneError when its agent was replaced or does not answer.

        After silence an agent is awaited first, for as long as the answer would be.
        """
        if self._silent or not self.boots:
            self.wait_answer(timeout)
        identity = uuid.uuid4().hex
        agent = self._agent
        self._open.add(identity)
        if stream is not None:
            self._streams[identity] = stream
        try:
            self._send({"id": identity, **message})
            with self._changed:
                self._changed.wait_for(
                    lambda: identity in self._answers or self._closed or self._agent != agent, timeout
                )
                answer = self._answers.pop(identity, None)
                self._silent = self._silent or (answer is None and self._agent == agent)
        finally:
            self._open.discard(identity)
            self._streams.pop(identity, None)
        if answer is None:
            why = "another one has taken its place" if self._agent != agent else f"waited {timeout:g} s"
            raise GuestGoneError("the virtual host's agent did not answer", why)
        if "error" in answer:
            raise KupgradeError("the virtual host's agent failed", str(answer["error"]))
        return answer

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        stream: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command in the virtual host; with `stream` its stdout goes there line by line."""
        message = {"argv": list(argv), "timeout": timeout, "stdin": stdin, "env": dict(env or {})}
        answer = self.request({**message, "stream": stream is not None}, timeout + 15.0, stream)
        return Completed(answer["status"], answer["stdout"], answer["stderr"])

    def read(self, path: str) -> bytes:
        """A file of the virtual host."""
        return base64.b64decode(self.request({"read": path}, 60.0)["data"])

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in the virtual host."""
        for offset in range(0, max(len(data), 1), CHUNK):
            chunk = base64.b64encode(data[offset : offset + CHUNK]).decode()
            self.request({"write": path, "data": chunk, "mode": mode, "append": offset > 0}, 60.0)

    def close(self) -> None:
        """End the connection; the virtual host runs on."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._reader.join(CLOSING)

"""Clients of real services, each with just enough of a protocol: Redis' RESP, PostgreSQL's version 3, HTTP/1.1.

Each asks, waits for the answer, writes it down, and asks again: what was acknowledged is what must be there afterwards.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod

PATIENCE = 600.0  # seconds for one answer: a new kernel may start in between


class Speaker(ABC):
    """One connection, served by a thread until `stop`."""

    def __init__(self, connection: socket.socket, name: str, interval: float = 0.05) -> None:
        connection.settimeout(PATIENCE)
        self.name = name
        self.acknowledged = 0  # requests 1 to this one
        self.resets = 0
        self.problems: list[str] = []
        self.longest_gap = 0.0  # seconds
        self._interval = interval
        self._line = connection
        self._in = connection.makefile("rb")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Say hello, and begin."""
        self.greet()
        self._thread.start()

    def stop(self) -> None:
        """Let the open request be answered; close."""
        self._stopped.set()
        self._thread.join(PATIENCE)
        self.close()

    def close(self) -> None:
        """The connection ends."""
        self._in.close()
        self._line.close()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped.is_set():
            try:
                self.ask(self.acknowledged + 1)
            except (ConnectionError, TimeoutError, EOFError, ValueError) as error:
                self.resets += isinstance(error, (ConnectionError, EOFError))
                self.problems.append(f"request {self.acknowledged + 1}: {error!r:.200}")
                return
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now
            self.acknowledged += 1
            time.sleep(self._interval)

    @abstractmethod
    def greet(self) -> None:
        """What the protocol begins with."""

    @abstractmethod
    def ask(self, number: int) -> None:
        """One request; returns when it is acknowledged. Raises ValueError when the answer is another one."""

    def send(self, data: bytes) -> None:
        self._line.sendall(data)

    def line(self) -> bytes:
        found = self._in.readline()
        if not found.endswith(b"\n"):
            raise EOFError("the connection ended")
        return found.rstrip(b"\r\n")

    def exactly(self, count: int) -> bytes:
        found = self._in.read(count)
        if len(found) != count:
            raise EOFError("the connection ended")
        return found


class Redis(Speaker):
    """SETs a record and INCRements a counter with each request."""

    def greet(self) -> None:
        self.command("PING")

    def command(self, *words: str) -> bytes:
        """One command; its answer, if that is one line."""
        parts = [f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]
        self.send("".join(parts).encode())
        answer = self.line()
        if answer.startswith(b"$"):
            return self.exactly(int(answer[1:]) + 2)[:-2] if answer != b"$-1" else b""
        return answer

    def ask(self, number: int) -> None:
        if (answer := self.command("SET", f"{self.name}:{number}", f"value {number}")) != b"+OK":
            raise ValueError(answer)
        if (answer := self.command("INCR", self.name)) != f":{number}".encode():
            raise ValueError(answer)


class Postgres(Speaker):
    """INSERTs a record with each request, committed when it is acknowledged."""

    def greet(self) -> None:
        words = b"user\0load\0database\0load\0\0"
        self.send(struct.pack("!II", 8 + len(words), 196608) + words)
        self.answer()

    def answer(self) -> tuple[bytes, ...]:
        """Everything until it is ready for the next query; the columns of the rows. Raises ValueError for an error."""
        rows: list[bytes] = []
        wrong = b""
        while True:
            kind = self.exactly(1)
            body = self.exactly(struct.unpack("!I", self.exactly(4))[0] - 4)
            match kind:
                case b"E":
                    wrong = body
                case b"D":
                    rows.append(body[6:])  # of rows with one column: how many, and its length
                case b"Z":
                    if wrong:
                        raise ValueError(wrong)
                    return tuple(rows)

    def query(self, text: str) -> tuple[bytes, ...]:
        """One simple query."""
        data = text.encode() + b"\0"
        self.send(b"Q" + struct.pack("!I", 4 + len(data)) + data)
        return self.answer()

    def ask(self, number: int) -> None:
        self.query(f"INSERT INTO acks VALUES ('{self.name}', {number})")


class Web(Speaker):
    """GETs a file again and again over one connection."""

    content = b"ok\n"

    def greet(self) -> None:
        """A client asks first."""

    def get(self, path: str) -> int:
        """Ask for a file; the bytes that follow."""
        self.send(f"GET {path} HTTP/1.1\r\nHost: load\r\n\r\n".encode())
        if not (status := self.line()).startswith(b"HTTP/1.1 200"):
            raise ValueError(status)
        length = -1
        while header := self.line():
            name, _, value = header.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return length

    def ask(self, number: int) -> None:
        if (found := self.exactly(self.get("/small"))) != self.content:
            raise ValueError(f"answer {number} is {found!r:.60}")


class Download(Web):
    """One file, taken slowly: from before the upgrade until after it."""

    def __init__(self, connection: socket.socket, rate: int) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        super().__init__(connection, "download", 0.0)
        self.rate = rate  # bytes a second
        self.received = 0
        self.digest = ""
        self.hurry = threading.Event()

    def ask(self, number: int) -> None:
        left = self.get("/large")
        summed = hashlib.sha256()
        piece = max(1, self.rate // 10)
        while left:
            data = self.exactly(min(piece, left))
            summed.update(data)
            left -= len(data)
            self.received += len(data)
            if not self.hurry.is_set():
                time.sleep(0.1)
        self.digest = summed.hexdigest()
        self._stopped.set()

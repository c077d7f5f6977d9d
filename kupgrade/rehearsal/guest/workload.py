"""The demonstration workload: a TCP server with a counter, a child, self-describing memory and a file. Stdlib only.

`N` -> `N COUNTER PID CHILDPID MONOTONIC`; `check` -> `check ok` or `check bad PAGES`.
Some of the memory is there before the child is forked, which keeps it as it was; the rest is the server's alone.
--dirty percent of the pages are re-written each second. A file that has been deleted may be open. A second port answers
every HTTP request with 200.
Long work is done in small portions between requests.
"""

from __future__ import annotations

import argparse
import mmap
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterator

PAGE = 4096
TAIL = bytes(range(256)) * 16
BODIES = tuple(TAIL[shift:][: PAGE - 24].ljust(PAGE - 24, b"k") for shift in range(255))
SHARED = 16  # MiB, at most, that the child inherits
PORTION = 32  # pages


def page(index: int, generation: int) -> bytes:
    """A page that tells its index and generation, with a body that depends on both."""
    body = BODIES[(index * 31 + generation) % 255]
    return b"".join((struct.pack("<QQ", index, generation), body, struct.pack("<Q", index ^ generation)))


class Memory:
    def __init__(self) -> None:
        self.maps: list[mmap.mmap] = []
        self.places: list[tuple[mmap.mmap, int]] = []  # of each page
        self.generations: list[int] = []
        self.next = self.due = 0

    @property
    def pages(self) -> int:
        return len(self.generations)

    def add(self, count: int) -> None:
        """So many pages more, in a mapping of their own."""
        made = mmap.mmap(-1, max(count, 1) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.maps.append(made)
        self.places += [(made, index * PAGE) for index in range(count)]
        self.generations += [0] * count
        for index in range(self.pages - count, self.pages):
            self.write(index, 1)

    def write(self, index: int, generation: int) -> None:
        where, start = self.places[index]
        where[start : start + PAGE] = page(index, generation)
        self.generations[index] = generation

    def right(self, index: int) -> bool:
        where, start = self.places[index]
        return where[start : start + PAGE] == page(index, self.generations[index])

    def dirty(self) -> None:
        """Write the next portion of the pages that are due."""
        for _ in range(min(self.due, PORTION)):
            self.write(self.next, self.generations[self.next] + 1)
            self.next = (self.next + 1) % self.pages
            self.due -= 1

    def bad(self) -> Iterator[int]:
        """How many pages of each portion are not what was written."""
        for start in range(0, self.pages, PORTION):
            yield sum(not self.right(index) for index in range(start, min(start + PORTION, self.pages)))


def child(requests: int, answers: int) -> None:
    number = 0
    while os.read(requests, 1):
        number += 1
        os.write(answers, struct.pack("<Q", number))
    os._exit(0)


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        to_child, from_child = os.pipe(), os.pipe()
        self.memory = Memory()
        self.memory.add(min(options.memory, SHARED) * 256)
        self.child = os.fork()
        if self.child == 0:
            os.close(to_child[1])
            child(to_child[0], from_child[1])
        os.close(to_child[0])
        self.ask, self.answer = to_child[1], from_child[0]
        self.memory.add(max(0, options.memory - SHARED) * 256)
        self.checks: dict[socket.socket, tuple[Iterator[int], int]] = {}
        self.file = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.deleted = os.open(options.file + ".deleted", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.unlink(options.file + ".deleted")
        self.deleted_pages = options.deleted * 256
        for index in range(self.deleted_pages):
            os.pwrite(self.deleted, page(index, 7), index * PAGE)
        self.counter = 0
        self.lines = 0
        self.buffers: dict[socket.socket, bytes] = {}
        self.selector = selectors.DefaultSelector()
        self.dirty_pages = self.memory.pages * options.dirty // 100
        for port, kind in ((options.port, "line"), (options.port + 1, "http")):
            listener = socket.create_server(("0.0.0.0", port), backlog=64)
            self.selector.register(listener, selectors.EVENT_READ, kind)

    def bad(self) -> Iterator[int]:
        """As of the memory; then of the file that has been deleted."""
        yield from self.memory.bad()
        for index in range(self.deleted_pages):
            yield os.pread(self.deleted, PAGE, index * PAGE) != page(index, 7)

    def reply(self, line: bytes) -> str:
        self.counter += 1
        os.write(self.ask, b".")
        (seen,) = struct.unpack("<Q", os.read(self.answer, 8))
        if seen != self.counter:
            return f"{line.decode()} child-lost-count {seen} {self.counter}"
        return f"{line.decode()} {self.counter} {os.getpid()} {self.child} {time.monotonic():.6f}"

    def receive(self, connection: socket.socket, kind: str) -> None:
        try:
            data = connection.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.selector.unregister(connection)
            self.buffers.pop(connection, None)
            self.checks.pop(connection, None)
            connection.close()
            return
        if kind == "http":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
            connection.shutdown(socket.SHUT_WR)
            return
        *lines, rest = (self.buffers.get(connection, b"") + data).split(b"\n")
        self.buffers[connection] = rest
        if b"check" in lines:
            self.checks[connection] = (self.bad(), 0)
        answers = [self.reply(line) for line in lines if line != b"check"]
        if answers:
            connection.sendall("".join(answer + "\n" for answer in answers).encode())

    def each_second(self) -> None:
        self.lines += 1
        os.write(self.file, f"{self.lines} {os.getpid()} {self.counter}\n".encode())
        self.memory.due = self.dirty_pages
        if self.lines % 10 == 1:
            print(f"line {self.lines}, {self.counter} requests answered", flush=True)

    def work(self) -> None:
        """A portion of what is not urgent."""
        self.memory.dirty()
        for connection, (portions, bad) in tuple(self.checks.items()):
            found = next(portions, None)
            if found is not None:
                self.checks[connection] = (portions, bad + found)
                continue
            del self.checks[connection]
            connection.sendall(b"check bad %d\n" % bad if bad else b"check ok\n")

    def serve(self) -> None:
        due = time.monotonic()
        while True:
            busy = bool(self.checks) or self.memory.due > 0
            for key, _ in self.selector.select(0.0 if busy else max(0.0, min(1.0, due - time.monotonic()))):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if key.data in ("line", "http"):
                    connection, _ = ready.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.selector.register(connection, selectors.EVENT_READ, "on-" + key.data)
                else:
                    self.receive(ready, key.data.removeprefix("on-"))
            self.work()
            now = time.monotonic()
            if now >= due or due - now > 2:  # the clock may jump back when a kernel is replaced
                due = now + 1
                self.each_second()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", type=int, default=64, help="MiB of pattern pages")
    parser.add_argument("--dirty", type=int, default=0, help="percent of the pages re-written per second")
    parser.add_argument("--deleted", type=int, default=0, help="MiB of a file that is open, and has been deleted")
    parser.add_argument("--port", type=int, default=7070, help="line protocol; HTTP is on the next port")
    parser.add_argument("--file", default="/var/lib/demo/lines")
    Server(parser.parse_args()).serve()


if __name__ == "__main__":
    main()

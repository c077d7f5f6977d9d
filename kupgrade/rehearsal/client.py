"""A client outside the virtual host: numbered requests at a fixed pace over established TCP connections.

It keeps sending while the host is silent (into the kernel's socket buffers), as a real peer would, and writes down when
each request was sent and answered.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class Recording:
    """What one connection saw. Times are seconds of time.monotonic(); index N of `sent` is request N.

    `counters`: the server's, of each answer. `parts`: the connections that this is the sum of.
    """

    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    in_order: bool = True
    counters: list[int] = field(default_factory=list)
    resets: int = 0
    pids: set[tuple[int, int]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    parts: tuple[Recording, ...] = ()

    def take(self, line: str, now: float) -> None:
        """One answer `N COUNTER PID CHILDPID MONOTONIC`."""
        words = line.split()
        try:
            number, counter, pid, child = (int(word) for word in words[:4])
        except ValueError:
            self.problems.append(f"answer {line!r:.80}")
            self.in_order = False
            return
        if number != len(self.answered):
            self.in_order = False
            self.problems.append(f"answer {number} came as number {len(self.answered)}")
        self.counters.append(counter)
        self.pids.add((pid, child))
        self.answered.append(now)

    def since(self, first: int) -> Recording:
        """The part from request `first` on; what broke before it stays broken."""
        return replace(self, sent=self.sent[first:], answered=self.answered[first:], counters=self.counters[first:])

    @property
    def counter_continuous(self) -> bool:
        """Whether the server counted each answer once, in whatever order the connections were served.

        On one connection the counter never falls, too.
        """
        if any(
            b <= a for each in self.parts or (self,) for a, b in zip(each.counters, each.counters[1:], strict=False)
        ):
            return False
        found = sorted(self.counters)
        return not found or found == list(range(found[0], found[0] + len(found)))

    @property
    def longest_gap(self) -> float:
        """Seconds between consecutive answers on one connection, at most; 0 with fewer than two."""
        if self.parts:
            return max(each.longest_gap for each in self.parts)
        return max((b - a for a, b in zip(self.answered, self.answered[1:], strict=False)), default=0.0)

    def latencies(self) -> list[tuple[float, float]]:
        """(send time, seconds to the answer) of every answered request, by send time."""
        if self.parts:
            return sorted(latency for each in self.parts for latency in each.latencies())
        return [(s, a - s) for s, a in zip(self.sent, self.answered, strict=False)]


def together(parts: Sequence[Recording]) -> Recording:
    """Several connections to one server as one recording."""
    return Recording(
        sent=[when for each in parts for when in each.sent],
        answered=[when for each in parts for when in each.answered],
        in_order=all(each.in_order for each in parts),
        counters=[counter for each in parts for counter in each.counters],
        resets=sum(each.resets for each in parts),
        pids=set[tuple[int, int]]().union(*(each.pids for each in parts)),
        problems=[f"connection {number}: {text}" for number, each in enumerate(parts) for text in each.problems],
        parts=tuple(parts),
    )


class Client:
    """One connection, served by a thread until `stop`."""

    def __init__(self, connection: socket.socket, interval: float = 0.02) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._socket = connection
        self._interval = interval
        self._first = 0
        self._sending = threading.Event()
        self._ended = threading.Event()
        self._sending.set()
        self.recording = Recording()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Send no more."""
        self._sending.clear()

    def pause(self, drain: float) -> Recording:
        """Send no more and wait up to `drain` seconds for the answers that are due; what was seen since go_on()."""
        self.hold()
        time.sleep(self._interval)  # what is being sent counts
        return self.drained(time.monotonic() + drain)

    def drained(self, deadline: float) -> Recording:
        """As pause(), when nothing has been sent for a while; `deadline` as of time.monotonic()."""
        while time.monotonic() < deadline and not self._ended.is_set():
            if len(self.recording.answered) >= len(self.recording.sent):
                break
            time.sleep(0.05)
        return self.recording.since(self._first)

    def go_on(self) -> None:
        """Send again after a pause, over the same connection."""
        self._first = len(self.recording.sent)
        self._sending.set()

    def stop(self, drain: float) -> Recording:
        """As pause(), and close; everything that was seen."""
        self.pause(drain)
        return self.end()

    def leave(self) -> None:
        """Neither send nor listen any more; end() waits for it."""
        self._ended.set()

    def end(self) -> Recording:
        """Close; everything that was seen."""
        self.leave()
        self._thread.join(5.0)
        self._socket.close()
        return self.recording

    def _run(self) -> None:
        unsent, received, due = b"", b"", time.monotonic()
        while not self._ended.is_set():
            now = time.monotonic()
            if not self._sending.is_set():
                due = now + self._interval
            elif now >= due:
                unsent += b"%d\n" % len(self.recording.sent)
                self.recording.sent.append(now)
                due = max(due + self._interval, now - 1.0)
            try:
                if unsent:
                    unsent = self._push(unsent)
                wait = max(0.0, min(self._interval, due - time.monotonic()))
                if select.select([self._socket], [], [], wait)[0]:
                    data = self._socket.recv(1 << 16)
                    if not data:
                        raise ConnectionResetError("the server closed the connection")
                    *lines, received = (received + data).split(b"\n")
                    for line in lines:
                        self.recording.take(line.decode(errors="replace"), time.monotonic())
            except OSError as error:
                self.recording.resets += 1
                self.recording.problems.append(f"connection lost: {error}")
                self._ended.set()

    def _push(self, data: bytes) -> bytes:
        try:
            return data[self._socket.send(data) :]
        except BlockingIOError:
            return data


class Clients:
    """Connections to one server, each with a pace of its own; together they send as fast as one alone."""

    def __init__(self, connections: Iterable[socket.socket], interval: float = 0.02) -> None:
        sockets = list(connections)
        self._interval = interval * len(sockets)
        self._clients = [Client(each, self._interval) for each in sockets]

    def pause(self, drain: float) -> Recording:
        """As of one connection, of all at the same time."""
        for each in self._clients:
            each.hold()
        time.sleep(self._interval)  # what is being sent counts
        deadline = time.monotonic() + drain
        return together([each.drained(deadline) for each in self._clients])

    def go_on(self) -> None:
        """Send again after a pause."""
        for each in self._clients:
            each.go_on()

    def stop(self, drain: float) -> Recording:
        """As pause(), and close; everything that was seen."""
        self.pause(drain)
        for each in self._clients:
            each.leave()
        return together([each.end() for each in self._clients])

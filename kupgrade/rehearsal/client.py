"""A client outside the virtual host: numbered requests at a fixed pace over one established TCP connection.

It keeps sending while the host is silent (into the kernel's socket buffers), as a real peer would, and writes down when
each request was sent and answered.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class Recording:
    """What one connection saw. Times are seconds of time.monotonic(); index N of `sent` is request N."""

    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    in_order: bool = True
    counter_continuous: bool = True
    resets: int = 0
    pids: set[tuple[int, int]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    _counter: int | None = None

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
        if self._counter is not None and counter != self._counter + 1:
            self.counter_continuous = False
            self.problems.append(f"the counter went from {self._counter} to {counter}")
        self._counter = counter
        self.pids.add((pid, child))
        self.answered.append(now)

    def since(self, first: int) -> Recording:
        """The part from request `first` on; what broke before it stays broken."""
        return replace(self, sent=self.sent[first:], answered=self.answered[first:])

    @property
    def longest_gap(self) -> float:
        """Seconds between consecutive answers, at most; 0 with fewer than two."""
        return max((b - a for a, b in zip(self.answered, self.answered[1:], strict=False)), default=0.0)

    def latencies(self) -> list[tuple[float, float]]:
        """(send time, seconds to the answer) of every answered request."""
        return [(s, a - s) for s, a in zip(self.sent, self.answered, strict=False)]


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

    def pause(self, drain: float) -> Recording:
        """Send no more and wait up to `drain` seconds for the answers that are due; what was seen since go_on()."""
        self._sending.clear()
        time.sleep(self._interval)  # what is being sent counts
        deadline = time.monotonic() + drain
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
        self._ended.set()
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

"""The journal's ends of streams to processes that run before the journal does.

A process restored before PID 1 is systemd needs a standard output that later leads to the journal. It gets one end of
a socket pair (`make`); what it writes waits in the kernel, with its credentials. The other end becomes a stream of
journald in the way in which journald's own streams outlive its restart (systemd's journald-stream.c): PID 1 holds the
descriptor in the descriptor store of systemd-journald.service, and /run/systemd/journal/streams/DEV:INODE says what the
stream is. `offer` keeps the descriptors at a socket and lays a run-time drop-in: before PID 1 starts journald, it runs
journal_push, which puts them into the store. That holds for the first start in a boot too: PID 1 reads
/run/systemd/system as it finds it. Where journald runs already, `insist` does the same from outside and restarts it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import command, journal_push
from kupgrade.host.journal_state import Stream, state_text

UNIT = "systemd-journald.service"
STREAMS = "run/systemd/journal/streams"
NOTIFY = "run/systemd/notify"
PUSH = ("/usr/bin/python3", "-sP", "-m", "kupgrade.host.journal_push")
SEND_BUFFER = 8 << 20  # bytes; what systemd gives a service's stream (exec-invoke.c)
_WORD = re.compile(r"[A-Za-z0-9_./=:@,+-]+")
_SOCKET = re.compile(r"socket:\[([0-9]+)\]")


@dataclass(frozen=True, slots=True)
class StreamPair:
    """The two ends of a stream. `inode`, `device`: the server's end, by which journald knows it."""

    client_fd: int
    server_fd: int
    inode: int
    device: int


def make() -> StreamPair:
    """A stream nobody reads yet: 8 MiB of lines wait in it, then the writer does. Both ends are the caller's to close.

    The client's end is best kept open until the stream has settled: PID 1 drops a stream that nobody can write to, and
    the last lines of a writer that ended early with it. Raises OSError.
    """
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # who wrote counts from the first byte on
    with contextlib.suppress(PermissionError):
        client.setsockopt(socket.SOL_SOCKET, 32, SEND_BUFFER)  # SO_SNDBUFFORCE
    client.shutdown(socket.SHUT_RD)
    status = os.fstat(server.fileno())
    return StreamPair(client.detach(), server.detach(), status.st_ino, status.st_dev)


def dropin_text(socket_path: Path, push: Sequence[str] = PUSH) -> str:
    """The drop-in of systemd-journald.service. Raises BadInputError for words that a unit file would have to quote."""
    words = [*push, str(socket_path)]
    if not all(_WORD.fullmatch(word) for word in words):
        raise BadInputError("The journal's streams cannot be offered", f"odd characters in {words}")
    return f"""# Laid by kupgrade until the journal has the streams of restored processes; then removed.
[Service]
NotifyAccess=exec
ExecStartPre=-+{" ".join(words)}
"""


def journald(root: Path = Path("/")) -> int:
    """PID of the running journald, 0 when none runs. By its cgroup: no word with PID 1 is needed."""
    for procs in (root / "sys/fs/cgroup").glob(f"*.slice/{UNIT}/cgroup.procs"):
        for pid in procs.read_text().split():
            with contextlib.suppress(OSError):
                if (root / "proc" / pid / "comm").read_text().strip() == "systemd-journal":
                    return int(pid)
    return 0


def held_inodes(root: Path = Path("/")) -> frozenset[int]:
    """Inodes of all sockets that the running journald has open: a stream that was offered has no path to tell it by."""
    found = set()
    with contextlib.suppress(OSError):
        for link in (root / "proc" / str(journald(root)) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if match := _SOCKET.fullmatch(str(link.readlink())):
                    found.add(int(match[1]))
    return frozenset(found)


class Offer:
    """Server ends on their way to journald. All methods but the constructor may be called again and again.

    `root` is where we see the root directory of PID 1; it may be set anew when that changes.
    """

    def __init__(self, directory: Path, name: str, streams: Sequence[tuple[int, Stream]], root: Path) -> None:
        self.root = root
        self.address = directory / f"journal-{name}.sock"  # as PID 1 sees it
        self.name = name
        self.stored = threading.Event()  # PID 1 has them, journald may not yet
        self._streams = dict(streams)
        self._inodes = frozenset(os.fstat(fd).st_ino for fd in self._streams)
        self.socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.socket_path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self.socket_path))
        self.socket_path.chmod(0o600)
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, name=f"journal-{name}", daemon=True)
        self._thread.start()

    @property
    def socket_path(self) -> Path:
        """Where the descriptors are served."""
        return self.root / self.address.relative_to("/")

    @property
    def dropin(self) -> Path:
        """Where the drop-in of systemd-journald.service lies."""
        return self.root / "run/systemd/system" / f"{UNIT}.d" / f"50-kupgrade-{self.name}.conf"

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._server.accept()
            except OSError:  # withdrawn
                return
            with connection, contextlib.suppress(OSError):
                self._give(connection)

    def _give(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("iII", credentials)[1] != os.geteuid():
            return
        connection.settimeout(2 * journal_push.TIMEOUT)
        self.write_states()
        fds = list(self._streams)
        for start in range(0, len(fds), journal_push.MOST):
            socket.send_fds(connection, [b"+"], fds[start : start + journal_push.MOST])
        connection.sendall(b".")
        if connection.recv(len(journal_push.STORED)) == journal_push.STORED:
            self.stored.set()

    def write_states(self) -> None:
        """Write the state files; journald removes those whose descriptor it does not get at its start."""
        directory = self.root / STREAMS
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for fd, stream in self._streams.items():
            status = os.fstat(fd)
            path = directory / f"{status.st_dev}:{status.st_ino}"
            temporary = directory / f".#{path.name}.kupgrade"
            temporary.write_text(state_text(stream))
            temporary.replace(path)

    def held(self) -> frozenset[int]:
        """Inodes of the server ends that the running journald has among its descriptors."""
        return self._inodes & held_inodes(self.root)

    def settled(self) -> bool:
        """Whether the running journald holds every stream: ours may be closed."""
        return self.held() == self._inodes

    def await_settled(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for journald to hold every stream."""
        deadline = time.monotonic() + timeout
        while not self.settled():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def insist(self, timeout: float = 30.0) -> None:
        """Hand over to the journald that runs, without the drop-in: store the descriptors in its name, restart it.

        Raises KupgradeError when none runs, PID 1 does not answer, or the streams are not held after `timeout` seconds.
        """
        pid = journald(self.root)
        if not pid:
            raise KupgradeError("The journal's streams were not handed over", "systemd-journald does not run")
        try:
            journal_push.store(str(self.root / NOTIFY), list(self._streams), pid)
        except OSError as error:
            raise KupgradeError("The journal's streams were not handed over", str(error)) from error
        self.write_states()
        command.run(["systemctl", "restart", UNIT], timeout=timeout)
        if not self.await_settled(timeout):
            raise KupgradeError("The journal's streams were not handed over", "systemd-journald did not restore them")

    def withdraw(self) -> bool:
        """Take everything of ours away and close our server ends; True when systemd has a daemon-reload due.

        A stream that journald does not hold ends here, unless PID 1 stored it, and its state file goes.
        """
        held = self.held()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(2 * journal_push.TIMEOUT)
        self._server.close()
        self.socket_path.unlink(missing_ok=True)
        for fd in self._streams:
            status = os.fstat(fd)
            if status.st_ino not in held:
                (self.root / STREAMS / f"{status.st_dev}:{status.st_ino}").unlink(missing_ok=True)
            os.close(fd)
        self._streams = {}
        return self._remove_dropin()

    def _remove_dropin(self) -> bool:
        found = self.dropin.exists()
        self.dropin.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.dropin.parent.rmdir()  # only when it is empty
        return found


def offer(
    directory: Path,
    name: str,
    streams: Sequence[tuple[int, Stream]],
    *,
    push: Sequence[str] = PUSH,
    root: Path = Path("/"),
) -> Offer:
    """Keep server ends for journald's next start, served from `directory` (root's alone) until withdrawn.

    `name` tells several offers apart; `streams` are server ends, which belong to the offer from now on, and what they
    are. `directory` and `push`, the command of journal_push, are as PID 1 will see them once it is systemd. Raises
    OSError, BadInputError.
    """
    offered = Offer(directory, name, streams, root)
    try:
        offered.dropin.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        offered.dropin.write_text(dropin_text(offered.address, push))
        offered.write_states()
    except (OSError, KupgradeError):
        offered.withdraw()
        raise
    return offered

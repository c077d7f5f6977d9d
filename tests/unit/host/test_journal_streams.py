"""Streams handed to the journal: formats, the offer and what reaches PID 1's socket."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import journal_push, journal_state, journal_streams
from kupgrade.host.journal_state import Stream
from kupgrade.host.journal_streams import Offer, StreamPair

STREAM = Stream("demo.service", "demo", "0123456789abcdef0123456789abcdef")
WRITTEN = """# This is private data. Do not parse
PRIORITY=30
LEVEL_PREFIX=1
FORWARD_TO_SYSLOG=0
FORWARD_TO_KMSG=0
FORWARD_TO_CONSOLE=0
STREAM_ID=0123456789abcdef0123456789abcdef
IDENTIFIER="demo"
UNIT="demo.service"
"""
JOURNALD_WROTE = """# This is private data. Do not parse
PRIORITY=3
LEVEL_PREFIX=0
FORWARD_TO_SYSLOG=0
FORWARD_TO_KMSG=1
FORWARD_TO_CONSOLE=0
STREAM_ID=fedcba9876543210fedcba9876543210
IDENTIFIER=d\\303\\251mo\\ttab
UNIT=dev-disk-by\\\\x2dlabel.service
LATER_KEY=7
"""


@dataclass
class Manager:
    """PID 1's end of the notify socket: takes what comes and closes its descriptors, as the real one does."""

    path: Path
    texts: list[bytes] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    def serve(self, taken: socket.socket) -> None:
        while b"BARRIER=1" not in self.texts:
            text, ancillary, _flags, _address = taken.recvmsg(4096, socket.CMSG_SPACE(1024) + socket.CMSG_SPACE(12))
            self.texts.append(text)
            for _level, kind, data in ancillary:
                if kind == socket.SCM_CREDENTIALS:
                    self.pids.append(struct.unpack("iII", data)[0])
                    continue
                for fd in struct.unpack(f"{len(data) // 4}i", data):
                    if text == b"FDSTORE=1":
                        self.inodes.append(os.fstat(fd).st_ino)
                    os.close(fd)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.settimeout(10.0)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        found = Manager(tmp_path / "notify")
        taken.bind(str(found.path))
        thread = threading.Thread(target=found.serve, args=(taken,), daemon=True)
        thread.start()
        yield found


@pytest.fixture
def pairs() -> Iterator[list[StreamPair]]:
    """Three streams; what a test gave away is closed by then."""
    made = [journal_streams.make() for _ in range(3)]
    yield made
    for pair in made:
        os.close(pair.client_fd)


def offered(root: Path, pairs: list[StreamPair]) -> Offer:
    streams = [(pair.server_fd, STREAM) for pair in pairs]
    return journal_streams.offer(Path("/run/kupgrade"), "demo", streams, root=root)


def test_a_pair_tells_who_wrote_before_anybody_reads(pairs: list[StreamPair]) -> None:
    """Lines wait with their writer's credentials; the inode is that of the end journald gets."""
    os.write(pairs[0].client_fd, b"early\n")
    assert pairs[0].inode == os.fstat(pairs[0].server_fd).st_ino
    with socket.socket(fileno=pairs[0].server_fd) as server:
        text, ancillary, _flags, _address = server.recvmsg(100, socket.CMSG_SPACE(12))
    assert text == b"early\n"
    assert [struct.unpack("iII", data)[0] for _level, _kind, data in ancillary] == [os.getpid()]
    for pair in pairs[1:]:
        os.close(pair.server_fd)


def test_the_state_file_is_as_journald_writes_it() -> None:
    """All keys of stdout_stream_save(); names quoted, so that no character in them is read as another."""
    assert journal_state.state_text(STREAM) == WRITTEN
    odd = Stream("a\\x2db.service", 'say "$x"\n', STREAM.stream_id)
    assert 'IDENTIFIER="say \\"\\$x\\"?"\nUNIT="a\\\\x2db.service"' in journal_state.state_text(odd)


def test_a_stream_keeps_what_the_last_journald_knew() -> None:
    """A state file of journald's own is read, escapes and all; unknown keys and an empty file are no error."""
    stream = journal_state.parse_state(JOURNALD_WROTE)
    assert stream == Stream(
        "dev-disk-by\\x2dlabel.service",
        "démo\ttab",
        "fedcba9876543210fedcba9876543210",
        priority=3,
        level_prefix=False,
        forward_to_kmsg=True,
    )
    assert journal_state.parse_state(WRITTEN) == STREAM
    assert journal_state.parse_state("").level_prefix


def test_the_dropin_starts_the_program_before_journald() -> None:
    """With full rights, its failure ignored, its word believed by PID 1."""
    text = journal_streams.dropin_text(Path("/run/kupgrade/journal-demo.sock"))
    assert text.splitlines()[1:] == [
        "[Service]",
        "NotifyAccess=exec",
        "ExecStartPre=-+/usr/bin/python3 -sP -m kupgrade.host.journal_push /run/kupgrade/journal-demo.sock",
    ]
    with pytest.raises(BadInputError):
        journal_streams.dropin_text(Path("/run/a b"))


def test_an_offer_goes_to_pid_1(tmp_path: Path, pairs: list[StreamPair], manager: Manager) -> None:
    """The program, as PID 1 starts it, stores every descriptor, waits until it was seen, and says so to the offer."""
    offer = offered(tmp_path, pairs)
    done = subprocess.run(
        [sys.executable, "-m", "kupgrade.host.journal_push", str(offer.socket_path)],
        env={"NOTIFY_SOCKET": str(manager.path), "PYTHONPATH": str(Path(journal_push.__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0
    assert offer.stored.wait(5.0)
    assert manager.texts == [b"FDSTORE=1", b"BARRIER=1"]
    assert manager.inodes == [pair.inode for pair in pairs]
    names = sorted(path.name for path in (tmp_path / journal_streams.STREAMS).iterdir())
    assert names == sorted(f"{pair.device}:{pair.inode}" for pair in pairs)
    offer.withdraw()


def test_many_streams_go_in_several_messages(tmp_path: Path, manager: Manager) -> None:
    """More descriptors than one message takes."""
    pairs = [journal_streams.make() for _ in range(journal_push.MOST + 3)]
    offer = offered(tmp_path, pairs)
    assert journal_push.push(str(offer.socket_path), str(manager.path)) == len(pairs)
    assert manager.texts == [b"FDSTORE=1", b"FDSTORE=1", b"BARRIER=1"]
    assert manager.inodes == [pair.inode for pair in pairs]
    offer.withdraw()
    for pair in pairs:
        os.close(pair.client_fd)


def test_another_process_is_named_to_pid_1(pairs: list[StreamPair], manager: Manager) -> None:
    """What is stored for a unit from outside bears the PID of that unit's process."""
    if os.geteuid():
        pytest.skip("only root may name another process")
    journal_push.store(str(manager.path), [pairs[0].server_fd], os.getppid())
    assert manager.pids == [os.getppid()] * 2
    for pair in pairs:
        os.close(pair.server_fd)


def test_nothing_offered_is_no_failure(tmp_path: Path) -> None:
    """A later start of journald, while the drop-in is still loaded, goes on at once."""
    assert journal_push.main([str(tmp_path / "gone.sock")]) == 0


def test_a_withdrawn_offer_leaves_nothing(tmp_path: Path, pairs: list[StreamPair]) -> None:
    """Drop-in, socket, state files and descriptors go; twice is as once; an operator's own drop-in stays."""
    offer = offered(tmp_path, pairs)
    other = offer.dropin.with_name("other.conf")
    other.touch()
    assert offer.dropin.exists()
    assert offer.withdraw()
    assert not offer.withdraw()
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [other]
    for pair in pairs:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pair.server_fd)


def fake_journald(root: Path, inodes: list[int]) -> None:
    cgroup = root / "sys/fs/cgroup/system.slice" / journal_streams.UNIT
    cgroup.mkdir(parents=True)
    (cgroup / "cgroup.procs").write_text("41\n42\n")
    for pid, comm in (("41", "python3"), ("42", "systemd-journal")):
        (root / "proc" / pid / "fd").mkdir(parents=True)
        (root / "proc" / pid / "comm").write_text(f"{comm}\n")
        for number, inode in enumerate(inodes):
            (root / "proc" / pid / "fd" / str(number)).symlink_to(f"socket:[{inode}]")


@pytest.mark.parametrize(("held", "settled"), [(3, True), (2, False)])
def test_settled_is_what_journald_itself_holds(
    tmp_path: Path, pairs: list[StreamPair], held: int, settled: bool
) -> None:
    """Not before every stream is among its descriptors; the state files of those it has are its own and stay."""
    offer = offered(tmp_path, pairs)
    assert not offer.settled()
    fake_journald(tmp_path, [pair.inode for pair in pairs[:held]])
    assert offer.settled() is settled
    assert offer.await_settled(0.0) is settled
    offer.withdraw()
    assert len(list((tmp_path / journal_streams.STREAMS).iterdir())) == held


def test_nobody_to_insist_on(tmp_path: Path, pairs: list[StreamPair]) -> None:
    """Without a running journald, or without PID 1, the hand-over from outside says so."""
    offer = offered(tmp_path, pairs)
    with pytest.raises(KupgradeError, match="not handed over"):
        offer.insist()
    fake_journald(tmp_path, [])
    with pytest.raises(KupgradeError, match="not handed over"):
        offer.insist()
    offer.withdraw()


def test_an_offer_nobody_stands_behind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever offered has died: a failure, one line for the kernel's log, and the start of journald goes on."""
    told: list[str] = []
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(journal_push, "_complain", told.append)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    assert journal_push.main([str(tmp_path / "dead.sock")]) == 1
    assert told[0].endswith("Connection refused\n")

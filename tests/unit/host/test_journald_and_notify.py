"""Records for the system's journal and words for the service manager: real sockets, no daemon."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kupgrade.host import journald
from kupgrade.host.notify import notify, watchdog_seconds


def decode(data: bytes) -> dict[str, str]:
    """The native protocol read back."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            fields[name.decode()], data = value.decode(), rest
        else:
            (size,) = struct.unpack("<Q", rest[:8])
            fields[name.decode()], data = rest[8 : 8 + size].decode(), rest[9 + size :]
            assert rest[8 + size : 9 + size] == b"\n"
    return fields


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    path = tmp_path / journald.SOCKET
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.settimeout(5)
        yield server


@pytest.mark.parametrize(
    "value", ["plain", "", "two\nlines", "PRIORITY=0\nMESSAGE_ID=forged", "a=b", "ends\n", "ünï", "\n"]
)
def test_a_value_never_becomes_a_field_of_its_own(value: str) -> None:
    """Whatever it holds, newlines above all."""
    assert decode(journald.encode({"MESSAGE": value, "PRIORITY": "6"})) == {"MESSAGE": value, "PRIORITY": "6"}


@pytest.mark.parametrize("name", ["", "lower", "_TRUSTED", "A B", "A=B", "X" * 65, "A\nB"])
def test_names_are_those_the_journal_takes(name: str) -> None:
    """Anything else is a mistake of ours."""
    with pytest.raises(ValueError, match="no name of a journal field"):
        journald.encode({name: "x"})


def test_values_are_bounded() -> None:
    """A long error does not make the record too long for a datagram."""
    assert len(journald.encode({"MESSAGE": "x" * 1_000_000})) < 9000


def test_a_record_arrives(listener: socket.socket, tmp_path: Path) -> None:
    """At the native socket, as one datagram."""
    assert journald.send({"MESSAGE": "hello\nworld", "PRIORITY": "5"}, tmp_path)
    assert decode(listener.recv(65536)) == {"MESSAGE": "hello\nworld", "PRIORITY": "5"}


def test_without_a_journal_nothing_happens(tmp_path: Path, listener: socket.socket) -> None:
    """No socket, nobody behind it, or a full queue: False at once, and no exception."""
    assert journald.send({"MESSAGE": "x"}, tmp_path / "elsewhere") is False
    sent = 0
    while journald.send({"MESSAGE": "x" * 4000}, tmp_path):
        sent += 1
        assert sent < 100_000
    listener.close()
    assert journald.send({"MESSAGE": "x"}, tmp_path) is False


def test_a_stream_to_the_journal_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By device and inode, as systemd says them; a redirected output is not one."""
    with (tmp_path / "out").open("w") as file:
        info = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{info.st_dev}:{info.st_ino}")
        assert journald.is_stream(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{info.st_dev}:{info.st_ino + 1}")
        assert not journald.is_stream(file.fileno())
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not journald.is_stream()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One datagram, one line a word; a newline in a value starts no other word."""
    address = f"@kupgrade-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address.replace("@", "\0", 1))
        server.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify(READY=1, STATUS="goes\nMAINPID=1 on")
        assert server.recv(4096) == b"READY=1\nSTATUS=goes MAINPID=1 on"


def test_without_a_manager_nobody_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable, a wrong one, nobody there."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify(READY=1) is False
    for address in ("relative", str(tmp_path / "nobody")):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify(READY=1) is False


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("180000000", None, 180.0),
        ("180000000", "own", 180.0),
        ("180000000", "1", None),
        ("0", None, None),
        ("x", None, None),
    ],
)
def test_the_watchdog_is_asked_for_by_the_manager(
    usec: str, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For this process and no other."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_seconds() == seconds

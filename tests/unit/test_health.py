"""Probes, and taking back what a probed workload wrote."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kupgrade.errors import ExitCode, KupgradeError, NeedsHumanError, OverBudgetError
from kupgrade.machine import health
from kupgrade.machine.health import ask, check_budget, check_processes, take_back
from kupgrade.machine.places import Places
from kupgrade.model.plan import Allowance
from kupgrade.model.workload import FileState, Probe, ProbeKind, Store, StoreKind, Workload

STORE = Store(StoreKind.DISK, "/images")
SERVER = Workload(name="db", unit="db.service", cgroup="/db", root_pid=500, pids=(500, 501, 502))


def state(path: Path, append_only: bool = True) -> FileState:
    info = path.stat()
    return FileState(str(path), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, append_only)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    return path


def test_appended_bytes_are_cut_off_exactly(file: Path) -> None:
    """The file is what it was before the probe, to the byte and the time stamp; twice is no error."""
    before = state(file)
    with file.open("ab") as opened:
        opened.write(b"three\n")
    os.utime(file, ns=(1, before.mtime_ns + 10**9))
    take_back(before)
    take_back(before)
    assert file.read_bytes() == b"one\ntwo\n" and file.stat().st_mtime_ns == before.mtime_ns


def test_an_untouched_file_is_left_alone(file: Path) -> None:
    """Nothing is written where nothing changed."""
    before = state(file, append_only=False)
    take_back(before)
    assert file.stat().st_mtime_ns == before.mtime_ns


@pytest.mark.parametrize("change", ["overwrite", "shrink", "replace", "remove"])
def test_any_other_change_ends_with_a_human(file: Path, change: str) -> None:
    """What cannot be taken back exactly is never guessed."""
    before = state(file, append_only=change != "overwrite")
    match change:
        case "overwrite":
            file.write_bytes(b"ONE\ntwo\n")
            os.utime(file, ns=(1, before.mtime_ns + 10**9))
        case "shrink":
            file.write_bytes(b"one\n")
            os.utime(file, ns=(1, before.mtime_ns + 10**9))
        case "replace":
            other = file.with_name("new")
            other.write_bytes(b"one\ntwo\n")
            other.rename(file)
        case "remove":
            file.unlink()
    with pytest.raises(NeedsHumanError):
        take_back(before)


def test_a_tcp_probe_asks_a_listening_port() -> None:
    """Accepted is healthy; refused until the timeout is not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ask(Probe(ProbeKind.TCP, port=port, timeout=2.0), "demo")
    with pytest.raises(KupgradeError, match="not healthy"):
        ask(Probe(ProbeKind.TCP, port=port, timeout=0.2), "demo")


def test_an_http_probe_asks_this_host_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd may give all services an http_proxy: it cannot reach this host's loopback, nor be reached when locked."""
    with serving(b"HTTP/1.0 200 OK\r\n\r\n") as port, socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        ask(Probe(ProbeKind.HTTP, port=port, path="/", timeout=2.0), "demo")


def test_a_redirection_is_an_answer_and_not_followed() -> None:
    """Behind the lock the other host, or the load balancer before this one, cannot be reached."""
    with serving(b"HTTP/1.0 301 Moved\r\nLocation: http://192.0.2.1/\r\n\r\n") as port:
        ask(Probe(ProbeKind.HTTP, port=port, path="/", timeout=2.0), "demo")


def test_a_service_that_does_not_speak_http_yet_is_asked_again() -> None:
    """What is no answer of HTTP is one more reason why it is not healthy, told when its time is over."""
    with serving(b"SSH-2.0-OpenSSH_9.2\r\n") as port, pytest.raises(KupgradeError, match="demo is not healthy"):
        ask(Probe(ProbeKind.HTTP, port=port, path="/", timeout=0.3), "demo")


def test_a_command_that_cannot_be_executed_is_told(tmp_path: Path) -> None:
    """A probe without the x bit is not healthy, and why is said."""
    script = tmp_path / "probe"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(KupgradeError, match=r"demo is not healthy.*Permission denied"):
        ask(Probe(ProbeKind.COMMAND, command=(str(script),), timeout=0.2), "demo")


@contextlib.contextmanager
def serving(answer: bytes) -> Iterator[int]:
    """A port at which every request gets `answer`."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.mark.parametrize(("command", "healthy"), [(("true",), True), (("false",), False), (("no-such-tool",), False)])
def test_a_command_probe_asks_its_exit_status(command: tuple[str, ...], healthy: bool) -> None:
    """0 is healthy; anything else, or no such command, is not."""
    probe = Probe(ProbeKind.COMMAND, command=command, timeout=0.2)
    if healthy:
        ask(probe, "demo")
    else:
        with pytest.raises(KupgradeError, match="not healthy"):
            ask(probe, "demo")


@pytest.mark.parametrize(("left", "measured", "over"), [(1.0, 0.5, False), (1.0, None, False), (1.0, 1.5, True)])
def test_a_measured_round_that_is_too_long_closes_the_gate(left: float, measured: float | None, over: bool) -> None:
    """What changed last takes longer to copy than the limit leaves: no freeze, exit code 6, and the figures."""
    allowance = Allowance("web", left, 5.0)
    if not over:
        check_budget(allowance, measured)
        return
    with pytest.raises(OverBudgetError, match=r"limit of 5 s.*\n?.*1\.50 s") as caught:
        check_budget(allowance, measured)
    assert caught.value.code is ExitCode.OVER_BUDGET


def test_criu_waits_for_the_dump_only_once_nothing_stands_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate's last word has one child for each workload started; a no at the gate starts none."""
    primed: list[int] = []
    checkpoints = SimpleNamespace(prime=lambda workloads: primed.append(len(workloads)), round_seconds={})
    room = SimpleNamespace(free_bytes=lambda: 100, used_bytes=lambda: 1 << 20)
    monkeypatch.setattr(health, "store_of", lambda _: room)
    monkeypatch.setattr(health.copies, "tree", lambda workload: workload.pids)
    port = health.RealHealth(Places(tmp_path), checkpoints)  # type: ignore[arg-type]
    workloads = [SERVER, replace(SERVER, name="web")]
    with pytest.raises(KupgradeError, match="nearly full"):
        port.gate(workloads, STORE, ())  # type: ignore[arg-type]
    assert primed == []
    room.used_bytes = lambda: 0
    port.gate(workloads, STORE, ())  # type: ignore[arg-type]
    assert primed == [2]


@pytest.mark.parametrize(
    ("found", "floor", "words"),
    [
        ((500, 501, 502), 1502, ""),
        ((500, 501, 777), 1502, ""),
        ((500,), 0, ""),
        ((500, 1501), 1502, ""),
        ((500, 1502), 1502, "PIDs that the next boot may need"),
        ((500, 999_999), 1502, ""),
        ((501, 502), 1502, "another main process"),
        ((), 1502, "another main process"),
    ],
)
def test_a_server_may_have_more_processes_than_planned(found: tuple[int, ...], floor: int, words: str) -> None:
    """One for each connection, say; but the main one stays, and none has a PID that the next boot gives away."""
    if not words:
        check_processes(SERVER, found, floor)
        return
    with pytest.raises(KupgradeError, match=words):
        check_processes(SERVER, found, floor)

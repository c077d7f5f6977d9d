"""The link to the agent, against the real agent's answers on a socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kupgrade.rehearsal.link import GuestGoneError, Link

HELLO = {"boot_id": "a", "release": "6.12", "uptime": 1.0, "agent": "1", "time": 0.0}
Answer = Callable[[dict[str, Any]], list[bytes]]


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def serve(path: Path, answer: Answer) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def run() -> None:
        connection, _ = server.accept()
        with server, connection, connection.makefile("rb") as requests:
            for request in requests:
                if not request.strip():
                    continue
                value = json.loads(request)
                answers = [line({"hello": HELLO})] if value.get("hello") else answer(value)
                connection.sendall(b"".join(answers))

    threading.Thread(target=run, daemon=True).start()


def linked(tmp_path: Path, answer: Answer) -> Link:
    serve(tmp_path / "agent", answer)
    return Link(tmp_path / "agent")


def test_a_command_gives_status_and_output(tmp_path: Path) -> None:
    """The answer to a request carries its number; torn lines between are skipped."""

    def answer(request: dict[str, Any]) -> list[bytes]:
        done = {"id": request["id"], "status": 3, "stdout": "out", "stderr": "err"}
        return [b'{"id": "torn\n', line({"id": "other", "status": 0}), line(done)]

    link = linked(tmp_path, answer)
    done = link.run(["true"], timeout=5)
    assert (done.status, done.stdout, done.stderr) == (3, "out", "err")
    link.close()


def test_lines_are_streamed_while_a_command_runs(tmp_path: Path) -> None:
    """With `stream` the guest's output comes line by line."""

    def answer(request: dict[str, Any]) -> list[bytes]:
        lines = [line({"id": request["id"], "line": text}) for text in ("one", "two")]
        return [*lines, line({"id": request["id"], "status": 0, "stdout": "", "stderr": ""})]

    seen: list[str] = []
    link = linked(tmp_path, answer)
    assert link.run(["true"], timeout=5, stream=seen.append).status == 0
    assert seen == ["one", "two"]
    link.close()


def test_a_new_boot_ends_open_requests(tmp_path: Path) -> None:
    """A request the old kernel took with it does not wait for its timeout."""
    link = linked(tmp_path, lambda _request: [line({"hello": {**HELLO, "boot_id": "b", "agent": "2"}})])
    with pytest.raises(GuestGoneError):
        link.run(["true"], timeout=60)
    assert [boot.boot_id for boot in link.boots] == ["a", "b"]
    link.close()


def test_the_same_boot_is_counted_once(tmp_path: Path) -> None:
    """Saying hello again is not another boot."""
    link = linked(tmp_path, lambda request: [line({"id": request["id"], "data": "aGk="})])
    assert link.wait_boot(5).release == "6.12"
    assert link.read("/x") == b"hi"
    assert len(link.boots) == 1
    link.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the other end of its port for the test to speak as it likes."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "agent"))
        server.listen()
        link = Link(tmp_path / "agent")
        port = server.accept()[0]
    with port:
        yield link, port
        link.close()


def asked(port: socket.socket, hellos: bool = False) -> dict[str, Any]:
    """The next request that reaches the agent."""
    while True:
        text = b""
        while not text.endswith(b"\n"):
            text += port.recv(1)
        value: dict[str, Any] = json.loads(text) if text.strip() else {"hello": False}
        if "hello" not in value or (hellos and value["hello"]):
            return value


def test_a_torn_message_does_not_hide_the_next_hello(pair: tuple[Link, socket.socket]) -> None:
    """The new kernel's agent speaks on the same port, behind half a message of the old one: another boot."""
    link, port = pair
    torn = line({"id": "x", "stdout": 'said {"hello": 1} ' * 9})[:70]
    port.sendall(line({"hello": HELLO}) + torn + line({"hello": {**HELLO, "boot_id": "b", "agent": "2"}}))
    assert link.wait_boot(5, after=1).boot_id == "b"
    port.sendall(b"\0\xff{]\n" + torn + b"\n" + line({"hello": {**HELLO, "boot_id": "c", "agent": "3"}}))
    assert link.wait_boot(5, after=2).boot_id == "c"


def test_after_silence_a_request_waits_for_an_agent(pair: tuple[Link, socket.socket]) -> None:
    """What was not answered is not asked again; only hellos are asked for until one comes, then the request."""
    link, port = pair
    port.sendall(line({"hello": HELLO}))
    link.wait_boot(5)
    with pytest.raises(GuestGoneError):
        link.request({"argv": ["lost"]}, 0.2)
    lost = asked(port)
    done: list[Any] = []
    waiting = threading.Thread(target=lambda: done.append(link.request({"argv": ["next"]}, 20.0)))
    waiting.start()
    assert [asked(port, hellos=True) for _ in range(2)] == [{"hello": True}] * 2
    port.sendall(line({"hello": {**HELLO, "boot_id": "b", "agent": "2"}}))
    request = asked(port)
    assert (lost["argv"], request["argv"]) == (["lost"], ["next"])
    port.sendall(line({"id": lost["id"], "status": 1}) + line({"id": request["id"], "status": 0}))
    waiting.join(10)
    assert [each["status"] for each in done] == [0]
    assert [boot.boot_id for boot in link.boots] == ["a", "b"]


def test_the_old_agent_may_come_back(pair: tuple[Link, socket.socket]) -> None:
    """Rolled back: the same agent answers again after its silence, in the same boot."""
    link, port = pair
    port.sendall(line({"hello": HELLO}))
    link.wait_boot(5)
    with pytest.raises(GuestGoneError):
        link.request({"argv": ["lost"]}, 0.1)
    with pytest.raises(GuestGoneError):
        link.wait_answer(0.1)
    port.sendall(line({"hello": HELLO}))
    asked(port)
    threading.Thread(target=lambda: port.sendall(line({"id": asked(port)["id"], "status": 0}))).start()
    assert link.request({"argv": ["next"]}, 5.0)["status"] == 0
    assert len(link.boots) == 1


def test_a_machine_that_does_not_come_up_shows_the_end_of_its_console(
    pair: tuple[Link, socket.socket], tmp_path: Path
) -> None:
    """The error's reason ends with the serial log's last lines, without what a terminal would obey."""
    link, _port = pair
    (tmp_path / "serial.log").write_bytes(b"first\n" + b"  1.0 \x1b[0mKernel panic\n" * 40)
    with pytest.raises(GuestGoneError) as caught:
        link.wait_boot(0.1)
    assert "Kernel panic" in caught.value.why
    assert "\x1b" not in caught.value.why
    assert "first" not in caught.value.why

"""The link to the agent, against the real agent's answers on a socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
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

"""Sockets that a killed criu left in repair mode."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import process, tcp_repair
from kupgrade.kernel.libc import Libc


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours, in repair mode, and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        try:
            ours.setsockopt(socket.IPPROTO_TCP, tcp_repair.TCP_REPAIR, 1)
        except PermissionError:
            pytest.skip("needs CAP_NET_ADMIN")
        yield ours, theirs


def test_a_socket_in_repair_mode_is_used_again(connection: tuple[socket.socket, socket.socket]) -> None:
    """Its owner's writes fail until then, and reach the peer afterwards; others are left alone."""
    ours, theirs = connection
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        ours.send(b"lost")
    assert tcp_repair.end((os.getpid(),), Libc()) == 1
    ours.send(b"here")
    assert theirs.recv(10) == b"here"
    assert tcp_repair.end((os.getpid(),), Libc()) == 0


def test_a_process_that_has_ended_has_no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took them along; any other error is one."""

    def fds(_pid: int) -> tuple[process.Fd, ...]:
        raise KernelError("readdir", "/proc/1/fd", number)

    monkeypatch.setattr(process, "fds", fds)
    number = errno.ENOENT
    assert tcp_repair.end((4194303,), Libc()) == 0
    number = errno.EIO
    with pytest.raises(KernelError):
        tcp_repair.end((4194303,), Libc())

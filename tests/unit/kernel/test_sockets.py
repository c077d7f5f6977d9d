from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import sock_diag, sockets
from kupgrade.kernel.sockets import OtherSocket, TcpState, UnixSocket, UnixState, UnixType
from kupgrade.model.network import Connection, Endpoint

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00:00000000 00000000    33        0 4711 1 0000000000000000 20 4 30 10 -1\n"


def test_tcp_table_is_read(put, tmp_path):
    """Addresses are little endian words, queues are bytes."""
    put("proc/9/net/tcp", HEAD + f"   0: 0100007F:15B3 0A4D0A0A:01BB 01 0000000A:00000014 {REST}")
    (found,) = sockets.inet_sockets(9, tmp_path)
    assert (found.local, found.remote) == (Endpoint("127.0.0.1", 5555), Endpoint("10.10.77.10", 443))
    assert (found.state, found.tx_queue, found.rx_queue) == (TcpState.ESTABLISHED, 10, 20)
    assert (found.uid, found.inode) == (33, 4711)


@pytest.mark.parametrize(
    ("hexadecimal", "address"),
    [
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
        ("B80D0120000000000000000001000000", "2001:db8::1"),
    ],
)
def test_tcp6_addresses_are_canonical(put, tmp_path, hexadecimal, address):
    """IPv4 inside IPv6 reads as IPv4: that is what the peer sees."""
    put("proc/9/net/tcp6", HEAD + f"   0: {hexadecimal}:0050 {'0' * 32}:0000 0A 00000000:00000000 {REST}")
    (found,) = sockets.inet_sockets(9, tmp_path)
    assert found.local == Endpoint(address, 80)
    assert found.listening


def test_an_unconnected_udp_socket_listens(put, tmp_path):
    """UDP has no LISTEN state; CLOSE means that it takes datagrams from anybody."""
    put("proc/9/net/udp", HEAD + f"   0: 00000000:0035 00000000:0000 07 00000000:00000000 {REST}")
    assert sockets.inet_sockets(9, tmp_path)[0].listening


def test_unix_paths_may_hold_blanks(put, tmp_path):
    """The path is the rest of the line."""
    put(
        "proc/9/net/unix",
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 100 /run/a b\n"
        "0000000000000000: 00000003 00000000 00000000 0002 03 101\n",
    )
    assert sockets.unix_sockets(9, tmp_path) == (
        UnixSocket(100, UnixType.STREAM, UnixState.UNCONNECTED, True, "/run/a b"),
        UnixSocket(101, UnixType.DGRAM, UnixState.CONNECTED, False, ""),
    )


def test_a_unix_name_that_looks_like_lines_is_no_socket(put, tmp_path):
    """Anybody may bind a name with newlines: it neither breaks the table nor takes an IP socket's place."""
    forged = "0000000000000000: 00000003 00000000 00000000 0001 03 4711"
    put("proc/9/net/tcp", HEAD + f"   0: 0100007F:15B3 0A4D0A0A:01BB 01 0000000A:00000014 {REST}")
    put(
        "proc/9/net/unix",
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        f"0000000000000000: 00000002 00000000 00000000 0002 01 100 @a\nb c d e f g h\n{forged}\x85i\n",
    )
    found = sockets.by_inode(9, tmp_path)
    assert isinstance(found[4711], sockets.InetSocket)
    assert set(found) == {100, 4711}


def test_other_families_are_found_by_their_heading(put, tmp_path):
    """Netlink, packet and SCTP tables name their columns; missing tables are empty."""
    put(
        "proc/9/net/netlink",
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
        "0000000000000000 15  1          00000001 0        0        0     2        0        501\n",
    )
    put(
        "proc/9/net/sctp/eps",
        " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS\n 0 0 2 10 27 3868 0 502 10.0.0.1\n",
    )
    assert sockets.other_sockets(9, tmp_path) == (
        OtherSocket("netlink", 501, "15"),
        OtherSocket("sctp/eps", 502, "3868"),
    )
    assert set(sockets.by_inode(9, tmp_path)) == {501, 502}


class FakeDiag:
    """A netlink socket that answers from a list of datagrams."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = list(replies)
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recv(self, _size: int) -> bytes:
        return self.replies.pop(0)


def fake_diag(*replies: bytes) -> Any:
    return FakeDiag(*replies)


def _message(kind: int, body: bytes, flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _unix(inode: int, *attributes: bytes) -> bytes:
    return _message(20, struct.pack("=BBBBIII", 1, 1, 1, 0, inode, 0, 0) + b"".join(attributes))


DONE = _message(3, bytes(4))


def test_unix_peers_join_both_ends_over_datagrams():
    """A client of journald is found by the name of its peer."""
    diag = fake_diag(
        _unix(10, _attribute(2, struct.pack("=I", 11))),
        _unix(11, _attribute(0, b"/run/systemd/journal/stdout"), _attribute(2, struct.pack("=I", 10)))
        + _unix(12, _attribute(0, b"\0abstract")),
        DONE,
    )
    peers = sock_diag.unix_peers(diag)
    assert peers[peers[10].peer].path == "/run/systemd/journal/stdout"
    assert (peers[12].path, peers[12].peer) == ("@abstract", 0)


def test_an_interrupted_dump_is_asked_for_again():
    """NLM_F_DUMP_INTR: the table changed while it was read."""
    diag = fake_diag(_message(3, bytes(4), flags=0x10), _unix(10), DONE)
    assert set(sock_diag.unix_peers(diag)) == {10}
    assert len(diag.sent) == 2


def test_a_dump_that_is_always_interrupted_is_an_error():
    """It ends after some attempts."""
    with pytest.raises(KernelError) as caught:
        sock_diag.unix_peers(fake_diag(*[_message(3, bytes(4), flags=0x10)] * 10))
    assert caught.value.errno == errno.EINTR


def test_a_missing_module_is_told_by_its_errno():
    """The kernel answers ENOENT when the family has no diag module."""
    with pytest.raises(KernelError) as caught:
        sock_diag.unix_peers(fake_diag(_message(2, struct.pack("=i", -errno.ENOENT))))
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, "AF_UNIX")


@pytest.fixture
def diag():
    try:
        made = sock_diag.connect()
        sock_diag.unix_peers(made)
    except KernelError as error:
        pytest.skip(f"sock_diag is not available: {error}")
    yield made
    made.close()


def test_real_unix_peers(diag):
    """Against the running kernel: the two ends of a socket pair name each other."""
    one, other = socket.socketpair()
    with one, other:
        first, second = os.fstat(one.fileno()).st_ino, os.fstat(other.fileno()).st_ino
        peers = sock_diag.unix_peers(diag)
    assert (peers[first].peer, peers[second].peer) == (second, first)


def test_real_tcp_counters(diag):
    """Against the running kernel: bytes that arrived are counted, and /proc tells the same connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as accepted:
            client.sendall(b"x" * 1000)
            accepted.recv(1000, socket.MSG_WAITALL)
            (info,) = sock_diag.tcp_infos(diag, port)
            found = sockets.by_inode()[os.fstat(accepted.fileno()).st_ino]
            ends = Connection(Endpoint("127.0.0.1", port), Endpoint(*client.getsockname()))
    assert (info.connection, info.bytes_received, info.state) == (ends, 1000, TcpState.ESTABLISHED)
    assert isinstance(found, sockets.InetSocket)
    assert Connection(found.local, found.remote) == ends


def test_an_answer_that_never_comes_is_an_error(monkeypatch):
    """Whoever asks has workloads that stand still."""
    monkeypatch.setattr(sock_diag, "_PATIENCE", struct.pack("@ll", 0, 50_000))
    with sock_diag.connect() as diag, pytest.raises(KernelError) as caught:
        sock_diag._dump(diag, "AF_UNIX")
    assert caught.value.errno == errno.EAGAIN

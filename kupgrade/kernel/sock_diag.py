"""NETLINK_SOCK_DIAG: peers of unix sockets and the counters of TCP connections (sock_diag(7)).

/proc/net/unix does not tell who is connected to whom; this does. Needs the modules unix_diag, tcp_diag.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import reported
from kupgrade.kernel.sockets import TcpState, UnixType
from kupgrade.model.network import Connection, Endpoint

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
CLONE_NEWNET = 0x40000000

# include/uapi/linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x10, 0x300

# include/uapi/linux/unix_diag.h
UDIAG_SHOW_NAME, UDIAG_SHOW_PEER = 0x1, 0x4
UNIX_DIAG_NAME, UNIX_DIAG_PEER = 0, 2

INET_DIAG_INFO = 2  # include/uapi/linux/inet_diag.h
_BYTES_ACKED = 120  # offset in struct tcp_info, include/uapi/linux/tcp.h; tcpi_bytes_received follows

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REPLY = 65536
_PATIENCE = struct.pack("@ll", 10, 0)  # struct timeval, for each part of an answer: it is asked in the blackout, too
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class UnixPeer:
    """An AF_UNIX socket. `path`: its own name, @ for abstract; `peer`: inode of the other end, 0 for none."""

    inode: int
    type: UnixType
    path: str
    peer: int


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """Counters of one connection. `rto` in microseconds; bytes since it was opened (or restored)."""

    connection: Connection
    state: TcpState
    inode: int
    retransmits: int  # of the oldest unacknowledged segment, so far
    backoff: int
    rto: int
    bytes_acked: int
    bytes_received: int


class NamespaceCalls(Protocol):
    """The one call this module needs of Libc, for other network namespaces."""

    def setns(self, fd: int, nstype: int) -> None:
        """See Libc."""
        ...


def connect(calls: NamespaceCalls | None = None, netns: Path | None = None) -> socket.socket:
    """A socket to ask with, in the caller's network namespace or (with `calls`) in `netns`, /proc/PID/ns/net.

    The namespace is entered by a short-lived thread; the caller's threads stay where they are.
    Raises KernelError (EPROTONOSUPPORT: no CONFIG_SOCK_DIAG); what
    is asked with it does, too (EAGAIN: no answer).
    """
    if netns is None or calls is None:
        with reported("socket", "NETLINK_SOCK_DIAG"):
            diag = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
            diag.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            return diag
    made: list[socket.socket | KernelError] = []

    def inside() -> None:
        try:
            with reported("open", netns):
                fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                calls.setns(fd, CLONE_NEWNET)
            finally:
                os.close(fd)
            made.append(connect())
        except KernelError as error:
            made.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if isinstance(made[0], KernelError):
        raise made[0]
    return made[0]


def _messages(diag: socket.socket, request: bytes, about: str) -> list[bytes]:
    """The bodies of a whole dump; asked again when the kernel says that it changed meanwhile."""
    for _ in range(_ATTEMPTS):
        header = _HEADER.pack(_HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        with reported("sock_diag", about):
            diag.send(header + request)
        bodies, consistent = _dump(diag, about)
        if consistent:
            return bodies
    raise KernelError("sock_diag", about, errno.EINTR)


def _dump(diag: socket.socket, about: str) -> tuple[list[bytes], bool]:
    bodies: list[bytes] = []
    consistent = True
    while True:
        with reported("sock_diag", about):
            data = diag.recv(_REPLY)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                raise KernelError("sock_diag", about, errno.EBADMSG)
            body = data[at + _HEADER.size : at + length]
            consistent = consistent and not flags & NLM_F_DUMP_INTR
            if kind == NLMSG_DONE:
                return bodies, consistent
            if kind == NLMSG_ERROR:
                # ENOENT: no handler for the family, its module is missing
                raise KernelError("sock_diag", about, -struct.unpack_from("=i", body)[0])
            bodies.append(body)
            at += (length + 3) & ~3


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """The rtattr list at `at`: (type, value)."""
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            return
        yield kind, body[at + 4 : at + length]
        at += (length + 3) & ~3


def unix_peers(diag: socket.socket) -> dict[int, UnixPeer]:
    """Every AF_UNIX socket of the namespace, by inode. Raises KernelError.

    A socket connected to a service, say journald's, has a peer that bears the listener's path.
    """
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, UDIAG_SHOW_NAME | UDIAG_SHOW_PEER, 0, 0)
    found = {}
    for body in _messages(diag, request, "AF_UNIX"):
        _, kind, _, _, inode = struct.unpack_from("=BBBBI", body)  # unix_diag_msg, 16 bytes
        path, peer = "", 0
        for name, value in _attributes(body, 16):
            if name == UNIX_DIAG_NAME:
                text = value.decode(errors="surrogateescape")
                path = "@" + text[1:] if text.startswith("\0") else text.rstrip("\0")
            elif name == UNIX_DIAG_PEER:
                peer = struct.unpack("=I", value)[0]
        found[inode] = UnixPeer(inode, UnixType(kind), path, peer)
    return found


def _sockid(family: int, data: bytes) -> Connection:
    """struct inet_diag_sockid: ports and addresses in network byte order, 16 bytes kept for each address."""
    width = 4 if family == socket.AF_INET else 16
    source, target = struct.unpack_from("!HH", data)
    local, remote = ip_address(data[4 : 4 + width]), ip_address(data[20 : 20 + width])
    return Connection(Endpoint(str(local), source), Endpoint(str(remote), target))


def tcp_infos(diag: socket.socket, local_port: int = 0) -> tuple[TcpInfo, ...]:
    """The namespace's TCP connections (of `local_port` unless 0), without listeners. Raises KernelError."""
    states = 0xFFFF & ~(1 << TcpState.LISTEN | 1 << TcpState.CLOSE | 1 << TcpState.TIME_WAIT)
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        wanted = struct.pack("!HH", local_port, 0) + bytes(44)  # inet_diag_sockid; 0 asks for any
        head = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0, states)
        for body in _messages(diag, head + wanted, "AF_INET" if family == socket.AF_INET else "AF_INET6"):
            info = next((value for kind, value in _attributes(body, 72) if kind == INET_DIAG_INFO), b"")
            info = info.ljust(_BYTES_ACKED + 16, b"\0")  # older kernels tell less
            acked, received = struct.unpack_from("=QQ", info, _BYTES_ACKED)
            found.append(
                TcpInfo(
                    connection=_sockid(body[0], body[4:52]),
                    state=TcpState(body[1]),
                    inode=struct.unpack_from("=I", body, 68)[0],
                    retransmits=info[2],
                    backoff=info[4],
                    rto=struct.unpack_from("=I", info, 8)[0],
                    bytes_acked=acked,
                    bytes_received=received,
                )
            )
    return tuple(found)

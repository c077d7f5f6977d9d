"""Sockets of one network namespace, from /proc/PID/net.

Sources: proc_pid_net(5), Documentation/networking/proc_net_tcp.rst.

A process's sockets are found by inode: kernel/process.py tells the inodes of its descriptors.
"""

from __future__ import annotations

import enum
import errno
import re
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import read_text
from kupgrade.model.network import Endpoint

INET_TABLES = (
    *("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6"),
    *("raw", "raw6", "icmp", "icmp6"),
)
# Tables whose heading names an inode column, and the column that says most besides
OTHER_TABLES = {"netlink": "Eth", "packet": "Proto", "sctp/eps": "LPORT", "sctp/assocs": "LPORT"}

_UNIX = re.compile(r"[0-9A-Fa-f]+:(?: [0-9A-F]{8}){3} 000[125] 0[0-4] +[0-9]+(?: |$)")
_ACCEPTING = 0x10000  # __SO_ACCEPTCON, include/uapi/linux/net.h


class TcpState(enum.IntEnum):
    """include/net/tcp_states.h; UDP uses ESTABLISHED (connected) and CLOSE."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND_INACTIVE = 13


class UnixType(enum.IntEnum):
    """Socket types of AF_UNIX, include/linux/net.h."""

    STREAM = 1
    DGRAM = 2
    SEQPACKET = 5


class UnixState(enum.IntEnum):
    """The St column of /proc/net/unix: socket_state of include/uapi/linux/net.h."""

    FREE = 0
    UNCONNECTED = 1
    CONNECTING = 2
    CONNECTED = 3
    DISCONNECTING = 4


@dataclass(frozen=True, slots=True)
class InetSocket:
    """A line of tcp, udp, raw, icmp (and their *6). Queues in bytes; a listener's `rx_queue` in connections.

    `protocol`: the table's name. `inode`: 0 when no process holds it any more. For raw and icmp the
    local port is the protocol number, or the echo ID.
    """

    protocol: str
    local: Endpoint
    remote: Endpoint
    state: TcpState
    inode: int
    uid: int
    rx_queue: int
    tx_queue: int

    @property
    def listening(self) -> bool:
        """Whether it waits for connections, or (UDP) for datagrams of anybody."""
        return self.state is TcpState.LISTEN or (self.state is TcpState.CLOSE and self.protocol.startswith("udp"))


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A line of unix. `path`: as bound, with @ for abstract names; empty when unbound."""

    inode: int
    type: UnixType
    state: UnixState
    listening: bool
    path: str


@dataclass(frozen=True, slots=True)
class OtherSocket:
    """A socket of another family. `table`: netlink, packet, sctp/eps or sctp/assocs.

    `detail`: netlink protocol number, Ethernet protocol in hex, or local port.
    """

    table: str
    inode: int
    detail: str


Socket = InetSocket | UnixSocket | OtherSocket


def _endpoint(text: str) -> Endpoint:
    """ADDRESS:PORT in hex; the address is 32-bit words in the byte order of this machine."""
    address, _, port = text.partition(":")
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    return Endpoint(str(ip_address(packed)), int(port, 16))


def parse_inet(protocol: str, text: str) -> tuple[InetSocket, ...]:
    """One of INET_TABLES; the first line is the heading."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10:
            continue
        tx, _, rx = words[4].partition(":")
        found.append(
            InetSocket(
                protocol=protocol,
                local=_endpoint(words[1]),
                remote=_endpoint(words[2]),
                state=TcpState(int(words[3], 16)),
                inode=int(words[9]),
                uid=int(words[7]),
                rx_queue=int(rx, 16),
                tx_queue=int(tx, 16),
            )
        )
    return tuple(found)


def parse_unix(text: str) -> tuple[UnixSocket, ...]:
    """/proc/net/unix; a path may hold blanks, and newlines, whose rest is left out unless it looks like a socket."""
    found = []
    for line in text.split("\n")[1:]:
        words = line.split(maxsplit=7)
        if not _UNIX.match(line):
            continue
        found.append(
            UnixSocket(
                inode=int(words[6]),
                type=UnixType(int(words[4], 16)),
                state=UnixState(int(words[5], 16)),
                listening=bool(int(words[3], 16) & _ACCEPTING),
                path=words[7] if len(words) > 7 else "",
            )
        )
    return tuple(found)


def parse_other(table: str, text: str) -> tuple[OtherSocket, ...]:
    """A table with a heading that names its columns."""
    lines = text.splitlines()
    heading = lines[0].split() if lines else []
    columns = [name.lower() for name in heading]
    if "inode" not in columns:
        return ()
    at, detail = columns.index("inode"), columns.index(OTHER_TABLES[table].lower())
    rows = [line.split() for line in lines[1:]]
    return tuple(OtherSocket(table, int(row[at]), row[detail]) for row in rows if len(row) > at)


def _table(pid: int | str, name: str, root: Path) -> str:
    """A table's text; empty when this kernel has none (IPv6 off, module not loaded)."""
    try:
        return read_text(root / "proc" / str(pid) / "net" / name)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return ""


def inet_sockets(pid: int | str = "self", root: Path = Path("/")) -> tuple[InetSocket, ...]:
    """Every IP socket in the network namespace of `pid`. Raises KernelError."""
    tables = ((name, _table(pid, name, root)) for name in INET_TABLES)
    return tuple(socket for name, text in tables for socket in parse_inet(name, text))


def unix_sockets(pid: int | str = "self", root: Path = Path("/")) -> tuple[UnixSocket, ...]:
    """Every AF_UNIX socket in the network namespace of `pid`. Raises KernelError."""
    return parse_unix(_table(pid, "unix", root))


def other_sockets(pid: int | str = "self", root: Path = Path("/")) -> tuple[OtherSocket, ...]:
    """Netlink, packet and SCTP sockets in the network namespace of `pid`. Raises KernelError."""
    tables = ((name, _table(pid, name, root)) for name in OTHER_TABLES)
    return tuple(socket for name, text in tables for socket in parse_other(name, text))


def by_inode(pid: int | str = "self", root: Path = Path("/")) -> dict[int, Socket]:
    """Every socket with an inode. One that a process holds and that is not here is of yet another family."""
    # Those of unix first: a name, which anybody may choose, can look like a line with the inode of another socket.
    everything: list[Socket] = [*unix_sockets(pid, root), *other_sockets(pid, root), *inet_sockets(pid, root)]
    return {socket.inode: socket for socket in everything if socket.inode}

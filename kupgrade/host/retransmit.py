"""Makes peers send again at once what they sent during the blackout.

A peer that got no answer doubles its waiting time again and again: after 15 s without us it may be silent for
another 12. RFC 6069 lets it take that back when an ICMP "host unreachable" quotes its oldest unacknowledged
segment: the waiting time shrinks one step, and if that time is over the segment is sent now (Linux:
tcp_ld_RTO_revert). So after the lock is off we send that ICMP, in the name of "the path was broken".
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kupgrade.errors import KernelError
from kupgrade.model.network import Connection

# Seconds after each round. A message takes back one doubling of the peer's waiting time, and what is due then is sent:
# a peer that sent lately needs several. One too many makes no duplicate, it only shortens a wait that has begun anew.
PAUSES = (0.01, 0.015, 0.025, 0.05, 0.08, 0.08, 0.08)

IPPROTO_TCP = 6
ICMP_DEST_UNREACH, ICMP_HOST_UNREACH = 3, 1
ICMPV6_DEST_UNREACH, ICMPV6_NOROUTE = 1, 0


@dataclass(frozen=True, slots=True)
class Stalled:
    """A restored connection. `next_seq`: the sequence number we expect next (criu: inq_seq of tcp-stream)."""

    connection: Connection
    next_seq: int


class IcmpPort(Protocol):
    """Sends a whole ICMP or ICMPv6 message."""

    def send(self, version: int, address: str, message: bytes) -> None:
        """To `address` of IP `version`. Raises KernelError."""
        ...


def checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _quoted_ipv4(source: bytes, target: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 60, 1, 0x4000, 64, IPPROTO_TCP, 0, source, target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def _quoted_ipv6(source: bytes, target: bytes) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, 40, IPPROTO_TCP, 64, source, target)


def unreachable(stalled: Stalled) -> bytes:
    """The ICMP message for the peer: it quotes the peer's own segment, so source and target are swapped.

    The ICMPv6 checksum is left 0: the kernel fills it in on a raw socket (ipv6(7)), it needs our address.
    """
    local, remote = stalled.connection.local, stalled.connection.remote
    segment = struct.pack("!HHI", remote.port, local.port, stalled.next_seq & 0xFFFFFFFF)
    if remote.version == 6:
        quoted = _quoted_ipv6(remote.packed, local.packed) + segment
        return struct.pack("!BBHI", ICMPV6_DEST_UNREACH, ICMPV6_NOROUTE, 0, 0) + quoted
    quoted = _quoted_ipv4(remote.packed, local.packed) + segment
    message = struct.pack("!BBHI", ICMP_DEST_UNREACH, ICMP_HOST_UNREACH, 0, 0) + quoted
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


class RawIcmp:
    """The real port: raw sockets, made when first needed. Needs CAP_NET_RAW."""

    __slots__ = ("_sockets",)

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def send(self, version: int, address: str, message: bytes) -> None:
        """See IcmpPort."""
        try:
            if version not in self._sockets:
                family = socket.AF_INET6 if version == 6 else socket.AF_INET
                protocol = socket.IPPROTO_ICMPV6 if version == 6 else socket.IPPROTO_ICMP
                self._sockets[version] = socket.socket(family, socket.SOCK_RAW, protocol)
            self._sockets[version].sendto(message, (address, 0))
        except OSError as error:
            raise KernelError("sendto", address, error.errno or 0) from error

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()


@dataclass(frozen=True, slots=True)
class Prompted:
    """One connection's outcome. `sent`: messages; `heard`: data came in (an idle peer has none to send)."""

    connection: Connection
    sent: int
    heard: bool
    error: str = ""


def prompt(
    stalled: Iterable[Stalled],
    port: IcmpPort,
    received: Callable[[], Mapping[Connection, int]],
    *,
    wait: Callable[[float], None] = time.sleep,
) -> tuple[Prompted, ...]:
    """Prompt every peer, at most once for each of PAUSES, until bytes come in.

    `received` gives each connection's bytes received so far (tcp_info; of a socket that was never restored, in its
    whole life). A peer that has sent again already takes no notice of a message about what was acknowledged. In each
    round every peer that was not heard gets one message; then a pause. A connection that is gone, or whose peer
    cannot be reached, is passed over: prompting is an improvement, never a condition.
    """
    everything = tuple(stalled)
    sent = {each.connection: 0 for each in everything}
    errors: dict[Connection, str] = {}
    before = received()
    heard: set[Connection] = set()
    for pause in PAUSES:
        done = heard | errors.keys()
        quiet = [each for each in everything if each.connection not in done]
        if not quiet:
            break
        for each in quiet:
            remote = each.connection.remote
            try:
                port.send(remote.version, remote.address, unreachable(each))
                sent[each.connection] += 1
            except KernelError as error:
                errors[each.connection] = str(error)
        wait(pause)
        now = received()
        heard |= {name for name in sent if now.get(name, 0) > before.get(name, 0)}
    return tuple(Prompted(name, sent[name], name in heard, errors.get(name, "")) for name in sent)

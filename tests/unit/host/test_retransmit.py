from __future__ import annotations

import errno
import struct

import pytest

from kupgrade.errors import KernelError
from kupgrade.host import retransmit
from kupgrade.host.retransmit import Stalled, checksum
from kupgrade.model.network import Connection, Endpoint

V4 = Connection(Endpoint("10.77.0.2", 5555), Endpoint("10.77.0.1", 40000))
V6 = Connection(Endpoint("2001:db8::2", 5555), Endpoint("2001:db8::1", 40000))


class Network:
    """Records messages; a peer answers after `answers_after` of them (0: never)."""

    def __init__(self, answers_after: dict[Connection, int], refuse: str = "") -> None:
        self.sent: list[tuple[int, str, bytes]] = []
        self.answers_after = answers_after
        self.refuse = refuse
        self.waits = 0

    def send(self, version: int, address: str, message: bytes) -> None:
        if address == self.refuse:
            raise KernelError("sendto", address, errno.ENETUNREACH)
        self.sent.append((version, address, message))

    def received(self) -> dict[Connection, int]:
        counts = {}
        for connection, needed in self.answers_after.items():
            came = sum(address == connection.remote.address for _, address, _ in self.sent)
            counts[connection] = 100 if needed and came >= needed else 0
        return counts

    def wait(self, _seconds: float) -> None:
        self.waits += 1


def test_the_ipv4_message_quotes_the_peers_segment():
    """RFC 792 and 6069: host unreachable; the quoted header is the peer's, seq is what we expect next."""
    message = retransmit.unreachable(Stalled(V4, 0x1_2345_6789))
    kind, code = message[:2]
    assert (kind, code) == (3, 1)
    assert checksum(message) == 0
    quoted, segment = message[8:28], message[28:]
    assert checksum(quoted) == 0
    assert (quoted[12:16], quoted[16:20]) == (V4.remote.packed, V4.local.packed)
    assert struct.unpack("!HHI", segment) == (40000, 5555, 0x2345_6789)


def test_the_ipv6_message_quotes_the_peers_segment():
    """ICMPv6 no route; the checksum is left to the kernel."""
    message = retransmit.unreachable(Stalled(V6, 7))
    assert message[:4] == bytes([1, 0, 0, 0])
    assert (message[16:32], message[32:48]) == (V6.remote.packed, V6.local.packed)
    assert struct.unpack("!HHI", message[48:]) == (40000, 5555, 7)


def test_one_message_is_enough_when_the_peer_answers():
    """No duplicates: they would be taken for a broken path."""
    net = Network({V4: 1})
    (result,) = retransmit.prompt([Stalled(V4, 1)], net, net.received, wait=net.wait)
    assert (result.sent, result.heard, net.waits) == (1, True, 1)


def test_a_silent_peer_is_given_up():
    """An idle peer has nothing to send again; that is no failure."""
    net = Network({V4: 0})
    (result,) = retransmit.prompt([Stalled(V4, 1)], net, net.received, wait=net.wait)
    assert (result.sent, result.heard, result.error) == (len(retransmit.PAUSES), False, "")


def test_bytes_of_an_earlier_life_say_nothing():
    """A socket that was frozen and thawed has received all its life: its peer is prompted all the same."""
    net = Network({V4: 1})
    net.sent.append((4, V4.remote.address, b""))
    (result,) = retransmit.prompt([Stalled(V4, 1)], net, net.received, wait=net.wait)
    assert result.sent > 0


def test_each_connection_is_followed_by_itself():
    """One answers at once, one at the third message, one cannot be reached; rounds are shared."""
    other = Connection(Endpoint("10.77.0.2", 5555), Endpoint("10.77.0.9", 1))
    net = Network({V4: 1, V6: 3, other: 0}, refuse="10.77.0.9")
    results = retransmit.prompt([Stalled(V4, 1), Stalled(V6, 1), Stalled(other, 1)], net, net.received, wait=net.wait)
    assert [(r.sent, r.heard) for r in results] == [(1, True), (3, True), (0, False)]
    assert [bool(r.error) for r in results] == [False, False, True]
    assert net.waits == 3


def test_nothing_to_prompt_waits_for_nothing():
    """No connections, no time spent in the blackout."""
    net = Network({})
    assert retransmit.prompt([], net, net.received, wait=net.wait) == ()
    assert net.waits == 0


@pytest.mark.parametrize(
    ("data", "value"), [(b"", 0xFFFF), (b"\x00\x01\xf2\x03\xf4\xf5\xf6\xf7", 0x220D), (b"\1", 0xFEFF)]
)
def test_checksum_examples(data, value):
    """RFC 1071, section 3; odd lengths are padded."""
    assert checksum(data) == value

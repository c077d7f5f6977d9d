"""Which addresses have to be there before sockets are restored, and which may come later, as in any boot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host import command
from kupgrade.kernel import sockets
from kupgrade.machine import network
from kupgrade.machine.network import bring_up
from kupgrade.machine.places import Places
from kupgrade.model.network import Endpoint
from kupgrade.model.workload import Workload

CARD = {
    "ifname": "eth0",
    "flags": ["BROADCAST", "UP", "LOWER_UP"],
    "link_type": "ether",
    "address": "52:54:00:00:00:01",
    "addr_info": [
        {"local": "192.0.2.1", "prefixlen": 24, "scope": "global"},
        {"local": "2001:db8::1", "prefixlen": 64, "scope": "global", "dynamic": True},
        {"local": "2001:db8::abcd", "prefixlen": 64, "scope": "global", "temporary": True, "dynamic": True},
    ],
}
BRIDGE = {
    "ifname": "virbr0",
    "flags": ["NO-CARRIER", "BROADCAST", "UP"],
    "link_type": "ether",
    "address": "52:54:00:00:00:02",
    "addr_info": [{"local": "192.168.122.1", "prefixlen": 24, "scope": "global"}],
}
OWN = {"192.0.2.1", "2001:db8::1"}
DEMO = Workload("demo", "demo.service", "/demo", 10, (10,))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A host with a card and a bridge that a service makes late in its boot."""
    made = Places(tmp_path)
    made.state.mkdir(parents=True)
    (tmp_path / "sys/class/net/eth0/device").mkdir(parents=True)
    (tmp_path / "sys/class/net/virbr0").mkdir()

    def run(argv: Sequence[str], **_: Any) -> command.Completed:
        routes = [{"dst": "default", "gateway": "192.0.2.254", "dev": "eth0", "flags": []}] if "-4" in argv else []
        told = routes if "route" in argv else [CARD, BRIDGE]
        return command.Completed(0, json.dumps(told), "")

    monkeypatch.setattr(network.command, "run", run)
    monkeypatch.setattr(network.nft, "lock", lambda *_: None)
    monkeypatch.setattr(network, "_SETTLE", 0.0)
    return made


def comes_up(places: Places, mode: str, present: set[str], monkeypatch: pytest.MonkeyPatch, used: str = "") -> None:
    """Locked in the old kernel; then a boot in which the addresses `present` come."""
    found, far = [], Endpoint("192.0.2.9", 80)
    if used:
        found.append(sockets.InetSocket("tcp", Endpoint(used, 40000), far, sockets.TcpState.ESTABLISHED, 1, 0, 0, 0))
    monkeypatch.setattr(network, "_sockets", lambda *_: found)
    network.RealNetwork(places, mode).lock((DEMO,), both=False)
    with monkeypatch.context() as new:
        new.setattr(network, "_present", lambda: present)
        new.setattr(network.nft, "locked", lambda: True)
        bring_up(places, 0.0)


@pytest.mark.parametrize("mode", ["early", "wait"])
def test_a_bridge_that_a_service_makes_is_not_waited_for(
    places: Places, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when this boot goes on, which waits for the workloads; nor are addresses that change by themselves."""
    comes_up(places, mode, OWN, monkeypatch)


@pytest.mark.parametrize("missing", sorted(OWN))
def test_the_hosts_own_addresses_are_waited_for(places: Places, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its network cards, whatever the workloads use."""
    with pytest.raises(KupgradeError, match="did not come up") as caught:
        comes_up(places, "wait", OWN - {missing}, monkeypatch)
    assert missing in caught.value.why


@pytest.mark.parametrize("used", ["192.168.122.1", "2001:db8::abcd"])
def test_what_a_socket_is_bound_to_is_waited_for(places: Places, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the socket cannot be restored."""
    with pytest.raises(KupgradeError, match="did not come up"):
        comes_up(places, "wait", OWN, monkeypatch, used)
    comes_up(places, "wait", {*OWN, used}, monkeypatch, used)


def test_addresses_that_an_older_release_left_are_all_waited_for(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did not say what they are."""
    link = {"name": "eth0", "mac": "52:54:00:00:00:01", "addresses": ["192.0.2.1/24"]}
    places.addresses.write_text(json.dumps({"links": [link], "routes": [], "mode": "wait"}))
    monkeypatch.setattr(network, "_present", set)
    with pytest.raises(KupgradeError, match="did not come up"):
        bring_up(places, 0.0)

"""Whom to prompt after the blackout is found out while criu is at work."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import criu, retransmit
from kupgrade.kernel import sock_diag
from kupgrade.machine import network
from kupgrade.machine.network import RealNetwork
from kupgrade.machine.places import Places
from kupgrade.model.network import Connection, Endpoint
from kupgrade.model.workload import Store, StoreKind, Workload

PEER = Connection(Endpoint("192.0.2.1", 7070), Endpoint("192.0.2.9", 40000))
DEMO = (Workload(name="demo", unit="", cgroup="/demo", pids=(10,), root_pid=10),)


def store(upgrade: str) -> Store:
    return Store(StoreKind.WINDOW, f"/run/kupgrade/images/{upgrade}", "tmpfs", "/run/kupgrade/images")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Directories that were read, and whom was prompted; `images`: what is in them, or what reading raises."""
    found: dict[str, Any] = {"read": [], "prompted": [], "images": {PEER: 7}}

    def received(directory: Path) -> dict[Connection, int]:
        found["read"].append(str(directory))
        if isinstance(found["images"], Exception):
            raise found["images"]
        return dict(found["images"])

    def prompt(stalled: Any, _port: object, _received: object) -> tuple[retransmit.Prompted, ...]:
        found["prompted"] += [(each.connection, each.next_seq) for each in stalled]
        return tuple(retransmit.Prompted(each.connection, 1, heard=True) for each in stalled)

    monkeypatch.setattr(criu, "received", received)
    monkeypatch.setattr(network.retransmit, "prompt", prompt)
    monkeypatch.setattr(sock_diag, "connect", contextlib.nullcontext)
    yield found


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "run/kupgrade").mkdir(parents=True)
    return Places(tmp_path)


def test_what_was_learned_before_is_not_read_again(places: Places, seen: dict[str, Any]) -> None:
    """The images are read once, and nothing is left lying about."""
    network.learn(places, store("a"), DEMO)
    assert RealNetwork(places).kick(store("a"), DEMO) == 1
    assert seen["prompted"] == [(PEER, 7)]
    assert seen["read"] == ["/run/kupgrade/images/a/demo/final"]
    assert not list(places.run.glob("stalled*"))


def test_what_was_learned_for_another_upgrade_is_not_used(places: Places, seen: dict[str, Any]) -> None:
    """Its sequence numbers are of another moment."""
    network.learn(places, store("a"), DEMO)
    seen["images"] = {PEER: 9}
    RealNetwork(places).kick(store("b"), DEMO)
    assert seen["prompted"] == [(PEER, 9)]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"next_seq": 1}]'])
def test_a_damaged_note_is_none(places: Places, seen: dict[str, Any], text: str) -> None:
    """The images are read instead."""
    (places.run / "stalled.a.json").write_text(text)
    RealNetwork(places).kick(store("a"), DEMO)
    assert seen["prompted"] == [(PEER, 7)]


def test_images_that_cannot_be_read_prompt_nobody(places: Places, seen: dict[str, Any]) -> None:
    """Prompting is an improvement, never a condition."""
    seen["images"] = BadInputError("no image")
    network.learn(places, store("a"), DEMO)
    assert RealNetwork(places).kick(store("a"), DEMO) == 0
    assert seen["prompted"] == []


def test_a_note_that_cannot_be_written_stops_nothing(tmp_path: Path, seen: dict[str, Any]) -> None:
    """A restore goes on."""
    network.learn(Places(tmp_path / "nowhere"), store("a"), DEMO)
    assert seen["read"]


@pytest.mark.parametrize("loaded", [struct.error("unpack requires a buffer of 4 bytes"), TypeError("no type"), []])
def test_a_dump_that_was_cut_short_prompts_nobody(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: object
) -> None:
    """A killed criu leaves images that it only opened; the undo goes on over them, whatever their reader raises."""

    def load(_file: object, pretty: bool) -> dict[str, object]:
        if isinstance(loaded, Exception):
            raise loaded
        return {"entries": loaded}

    monkeypatch.setattr(criu, "_import", lambda: SimpleNamespace(images=SimpleNamespace(load=load)))
    cut_short = Store(StoreKind.DISK, str(tmp_path / "images"))
    final = tmp_path / "images/demo/final"
    final.mkdir(parents=True)
    (final / "files.img").touch()
    with pytest.raises(criu.CheckpointError, match="cannot be read"):
        criu.received(final)
    assert RealNetwork(places).kick(cut_short, DEMO) == 0

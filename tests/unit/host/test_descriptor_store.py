"""What systemd tells of descriptor stores, and the one start by which a store is filled."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import command, descriptor_store
from kupgrade.host.command import Completed
from kupgrade.host.descriptor_store import Stored, Stores, giver_command, kind_of, parse_store, return_dropin, store_of
from kupgrade.model.descriptors import DescriptorStore

UNIT = "state.service"
SHOWN = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "FileDescriptorStoreMax": "8",
    "FileDescriptorStorePreserve": "yes",
    "NFileDescriptorStore": "3",
    "WantedBy": "multi-user.target",
}


def entry(**changes: Any) -> dict[str, Any]:
    base = {"fdname": "table", "type": 33279, "devno": [0, 1], "inode": 7, "rdevno": None, "path": "/memfd:t (deleted)"}
    return {**base, "flags": "rw", **changes}


def test_a_store_is_read_entry_by_entry() -> None:
    """Names, files and which they are; a number that systemd leaves out is 0, an empty store is none."""
    text = json.dumps([entry(), entry(fdname="wake", devno=None, inode=9, path="anon_inode:[eventfd]")])
    assert parse_store(text) == (
        Stored("table", "/memfd:t (deleted)", os.makedev(0, 1), 7),
        Stored("wake", "anon_inode:[eventfd]", 0, 9),
    )
    assert parse_store("[]") == parse_store("") == ()


@pytest.mark.parametrize("text", ["{", "[1]", '[{"fdname": "x"}]', json.dumps([entry(devno="0:1")]), '{"a": 1}'])
def test_a_list_of_another_form_is_refused(text: str) -> None:
    """A later systemd may say it in other words: then nothing is guessed."""
    with pytest.raises(BadInputError):
        parse_store(text)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("socket:[4711]", "socket"),
        ("pipe:[4711]", "pipe"),
        ("anon_inode:[eventfd]", "eventfd"),
        ("anon_inode:[eventpoll]", "eventpoll"),
        ("anon_inode:bpf-map", "bpf-map"),
        ("net:[4026531840]", "net"),
        ("/var/lib/x", "file"),
        ("/secretmem (deleted)", "file"),
        ("", "descriptor of unknown kind"),
    ],
)
def test_the_kind_is_told_by_what_it_refers_to(path: str, kind: str) -> None:
    """What is no memory of the kernel's own tmpfs, for whoever reads of the loss."""
    assert kind_of(Stored("x", path, os.makedev(0, 0xFFFF), 1)) == kind


@pytest.mark.parametrize("path", ["/memfd:cache (deleted)", "/ (deleted)"])
def test_memory_is_told_by_where_it_lies(path: str) -> None:
    """A memfd that a kernel took over from another one has no name any more, and is one all the same."""
    fd = os.memfd_create("where")
    device = os.fstat(fd).st_dev
    os.close(fd)
    assert kind_of(Stored("x", path, device, 1)) == "memfd"


def test_memory_in_huge_pages_is_of_another_kind() -> None:
    """It has the same name, and lies in another file system, which no kernel hands over."""
    assert kind_of(Stored("x", "/memfd:huge (deleted)", os.makedev(0, 0xFFFF), 1)) == "hugetlb memfd"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, DescriptorStore(UNIT, True, True, 8, "yes", "", 3)),
        ({"ActiveState": "failed"}, DescriptorStore(UNIT, True, False, 8, "yes", "", 3)),
        ({"ActiveState": "inactive"}, DescriptorStore(UNIT, True, False, 8, "yes", "", 3)),
        ({"ActiveState": "deactivating"}, DescriptorStore(UNIT, True, True, 8, "yes", "", 3)),
        ({"LoadState": "not-found"}, DescriptorStore(UNIT, False, True, 8, "yes", "", 3)),
        ({"FileDescriptorStorePreserve": "restart"}, DescriptorStore(UNIT, True, True, 8, "restart", "", 3)),
        ({"LUOSession": "state"}, DescriptorStore(UNIT, True, True, 8, "yes", "state", 3)),
        ({"WantedBy": ""}, DescriptorStore(UNIT, True, True, 8, "yes", "", 3, wanted=False)),
        ({"WantedBy": "", "TriggeredBy": "state.socket"}, DescriptorStore(UNIT, True, True, 8, "yes", "", 3)),
    ],
)
def test_what_systemd_shows_of_a_store(change: dict[str, str], expected: DescriptorStore) -> None:
    """Whoever is still being stopped counts as running; LUOSession= is what an older systemd does not show."""
    assert store_of(UNIT, {**SHOWN, **change}) == expected


def test_the_start_is_nothing_but_the_return() -> None:
    """Whatever the unit would run is taken out of it, and nothing keeps the start back or makes more of it."""
    lines = return_dropin(("/usr/bin/python3", "-m", "x")).splitlines()
    for cleared in ("ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost", "ExecStop", "ExecStopPost"):
        assert f"{cleared}=" in lines
    assert lines[-1] == "ExecStart=+/usr/bin/python3 -m x %n"  # a name with escapes would be unescaped in words
    assert {"Type=oneshot", "RemainAfterExit=no", "Restart=no", "NotifyAccess=main"} <= set(lines)
    assert giver_command()[0] == sys.executable


class Tool:
    """systemctl: what it was asked, with which drop-ins in place; what it fails at."""

    def __init__(self, stores: Stores, fails: str = "") -> None:
        self.stores, self.fails = stores, fails
        self.asked: list[tuple[str, bool]] = []

    def run(self, argv: Sequence[str], **_: Any) -> Completed:
        self.asked.append((argv[1], self.stores.dropin(UNIT).exists()))
        if argv[1] == self.fails:
            raise KupgradeError(f"{argv[1]} failed")
        return Completed(0, "", "")


@pytest.mark.parametrize("fails", ["", "start"])
def test_the_unit_has_its_own_configuration_again_whatever_happens(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drop-in is there for the start and no longer; a failed start is told and not left in the unit's state.

    That something refers to the unit stays: else systemd would forget it, and what is in its store.
    """
    stores = Stores(tmp_path)
    tool = Tool(stores, fails)
    monkeypatch.setattr(command, "run", tool.run)
    wrong = stores.start_return([UNIT], ("/bin/give",))
    assert wrong == ({UNIT: "start failed"} if fails else {})
    after = [("reset-failed", False)] if fails else []
    assert tool.asked == [("daemon-reload", True), ("start", True), ("daemon-reload", False), *after]
    assert not stores.dropin(UNIT).parent.exists()
    assert stores.dropin("-.slice").read_text() == f"[Unit]\nBefore={UNIT}\n"
    stores.forget([UNIT])  # done already: systemd is not asked again
    assert stores.start_return([], ("/bin/give",)) == {}
    assert len(tool.asked) == 3 + len(after)


def test_a_store_is_asked_for_by_systemds_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It speaks to PID 1 itself, so that it works before there is a message bus."""
    asked: list[Sequence[str]] = []

    def run(argv: Sequence[str], **_: Any) -> Completed:
        asked.append(argv)
        text = (
            json.dumps([entry()]) if argv[0] == "systemd-analyze" else "\n".join(f"{k}={v}" for k, v in SHOWN.items())
        )
        return Completed(0, text + "\n", "")

    monkeypatch.setattr(descriptor_store.command, "run", run)
    stores = Stores(tmp_path)
    assert stores.content(UNIT)[0].name == "table"
    assert stores.show(UNIT).held == 3
    assert [argv[0] for argv in asked] == ["systemd-analyze", "systemctl"]

"""Descriptor stores as facts, and duplicates of what is in them: a process of our own plays the service manager."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kupgrade import probe_descriptors
from kupgrade.errors import KupgradeError
from kupgrade.host.descriptor_store import Stored
from kupgrade.machine import descriptors
from kupgrade.model.descriptors import DescriptorStore, StoredDescriptor
from kupgrade.model.facts import Unknowns

UNIT = "state.service"
ROOT = Path("/")


def stored(name: str, fd: int) -> Stored:
    status = os.fstat(fd)
    return Stored(name, str(Path(f"/proc/self/fd/{fd}").readlink()), status.st_dev, status.st_ino)


@pytest.fixture
def opened() -> Iterator[dict[str, int]]:
    """Memory that can be written, the same kind opened for reading only, and what is no memory."""
    table, cache = os.memfd_create("table"), os.memfd_create("cache")
    os.write(table, b"table")
    reader = os.open(f"/proc/self/fd/{cache}", os.O_RDONLY)
    os.close(cache)
    fds = {"table": table, "cache": reader, "wake": os.eventfd(0)}
    yield fds
    for fd in fds.values():
        os.close(fd)


class FakeStores:
    """What systemd says."""

    def __init__(self, content: Sequence[Stored], **changes: Any) -> None:
        self.held, self.changes = content, changes

    def show(self, unit: str) -> DescriptorStore:
        if unit != UNIT:
            raise KupgradeError(f"{unit}: no answer")
        return DescriptorStore(unit, True, True, 8, "yes", held=len(self.held))

    def content(self, _unit: str) -> Sequence[Stored]:
        return self.held


def test_a_store_is_told_with_kinds_and_sizes(opened: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each unit once; one that cannot be asked is unknown, with the reason, and no empty store."""
    monkeypatch.setattr(probe_descriptors, "MANAGER", os.getpid())
    stores: Any = FakeStores([stored(name, fd) for name, fd in opened.items()])
    unknown = Unknowns()
    (found,) = probe_descriptors.observe_stores((UNIT, "gone.service", UNIT), stores, ROOT, unknown)
    assert found.descriptors == (
        StoredDescriptor("table", "memfd", 5),
        StoredDescriptor("cache", "memfd", 0),
        StoredDescriptor("wake", "eventfd", 0),
    )
    assert unknown == {"descriptor store of gone.service": "gone.service: no answer"}


def test_an_empty_store_needs_no_further_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager's own descriptors are looked at only where something is stored."""
    monkeypatch.setattr(probe_descriptors, "MANAGER", 0)
    stores: Any = FakeStores([])
    assert probe_descriptors.observe_stores((UNIT,), stores, ROOT, Unknowns())[0].descriptors == ()


@pytest.fixture
def manager(opened: dict[str, int]) -> Iterator[int]:
    """Another process that has all of them open."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_duplicates_are_of_the_same_files(
    opened: dict[str, int], manager: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken out of the other process by which file they are, with how they had been opened."""
    monkeypatch.setattr(descriptors, "_MANAGER", manager)
    wanted = [stored(name, opened[name]) for name in ("table", "cache")]
    taken = descriptors.from_manager(UNIT, wanted, ROOT)
    try:
        assert [(each.name, each.writable) for each in taken] == [("table", True), ("cache", False)]
        assert os.path.sameopenfile(taken[0].fd, opened["table"])
    finally:
        for each in taken:
            os.close(each.fd)


def test_what_the_manager_does_not_have_is_an_error(manager: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that changed since it was listed: nothing is held then."""
    monkeypatch.setattr(descriptors, "_MANAGER", manager)
    with pytest.raises(KupgradeError, match="table cannot be taken"):
        descriptors.from_manager(UNIT, [Stored("table", "/memfd:table (deleted)", 1, 0)], ROOT)

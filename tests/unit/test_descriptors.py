"""Stored descriptors from store to store: taken, given back; what is lost is told by name."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host import descriptor_store
from kupgrade.host.descriptor_store import Stored
from kupgrade.host.kept_descriptors import KeptDescriptor
from kupgrade.kernel.liveupdate_errors import RETRIEVE_SESSION
from kupgrade.machine import descriptor_giver, descriptor_holder
from kupgrade.machine.descriptor_holder import Checked, Taken
from kupgrade.machine.descriptors import RETURNED, RealDescriptors
from kupgrade.machine.places import Places
from kupgrade.model.descriptors import DescriptorStore
from tests.fakes.liveupdate import FakeLiveUpdate
from tests.fakes.stored_descriptors import LOST, OTHER, SEALS, SESSION, UNIT, held_here, memfd


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name leaves room for that of a socket."""
    with TemporaryDirectory() as top:
        yield Path(top)


@pytest.fixture
def places(short: Path) -> Places:
    made = Places(short)
    made.run.mkdir(parents=True)
    return made


class Late:
    """A kernel that has them for whoever asks first, in the process that asks: forks share no fake."""

    def __init__(self, root: Path) -> None:
        self.root, self.device, self.begun = root, FakeLiveUpdate(), False

    def open_device(self, path: Path) -> int:
        if not self.begun:
            self.begun = True
            held_here(self.device, self.root)
            self.device.kexec()
        return self.device.open_device(path)

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        self.device.ioctl(fd, request, argument)

    def close(self, fd: int) -> None:
        self.device.close(fd)


@dataclass
class Manager:
    """The service manager: a unit's start calls the giver as a process of that unit would be."""

    places: Places
    limit: int = 8
    active: set[str] = field(default_factory=set)
    store: dict[str, list[Stored]] = field(default_factory=dict)
    fails: bool = False
    starts: list[str] = field(default_factory=list)
    kept: list[tuple[str, int]] = field(default_factory=list)

    def show(self, unit: str) -> DescriptorStore:
        return DescriptorStore(unit, True, unit in self.active, self.limit, "yes")

    def content(self, unit: str) -> Sequence[Stored]:
        return self.store.get(unit, [])

    def start_return(self, units: Sequence[str], giver: Sequence[str]) -> Mapping[str, str]:
        assert giver[-1] == "kupgrade.machine.descriptor_giver"
        self.starts += units
        for unit in units if not self.fails else ():
            for name, fd in descriptor_holder.ask_give(self.places, unit)[: self.limit]:
                status = os.fstat(fd)
                self.kept.append((name, fd))
                stored = Stored(name, "/memfd:x (deleted)", status.st_dev, status.st_ino)
                self.store.setdefault(unit, []).append(stored)
        return dict.fromkeys(units, "it failed") if self.fails else {}

    def await_manager(self, timeout: float) -> None:
        """It is there."""


def port(places: Places, manager: Any, calls: Any, take: Any = None) -> RealDescriptors:
    real = RealDescriptors(places, manager, manager, calls)
    if take is not None:
        real.take = take
    return real


@pytest.fixture
def manager(places: Places) -> Iterator[Manager]:
    made = Manager(places)
    yield made
    for _, fd in made.kept:
        os.close(fd)


def test_they_come_into_the_stores_they_were_in(places: Places, manager: Manager) -> None:
    """Every unit's, by its names, read-only where they were so; then nobody else holds them, and it is told once."""
    real = port(places, manager, Late(places.root))
    expected = dict.fromkeys((*LOST, f"{OTHER}: same"), RETURNED)
    assert not real.given_back(SESSION)
    assert real.give_back(SESSION, LOST) == expected
    assert manager.starts == [UNIT, OTHER]
    flags = {name: fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for name, fd in manager.kept}
    assert flags == {"table": os.O_RDONLY, "cache": os.O_RDWR, "same": os.O_RDONLY}
    assert real.given_back(SESSION) and descriptor_holder.post(places).holder(SESSION) is None
    again = port(places, Manager(places, fails=True), FakeLiveUpdate())
    assert again.give_back(SESSION, LOST) == expected


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fails": True}, "lost: it failed"),
        ({"limit": 0}, "lost: systemd did not keep it, see FileDescriptorStoreMax="),
        ({"active": {UNIT, OTHER}}, "lost: the service was started before they came"),
    ],
)
def test_a_store_that_does_not_take_them_is_told(
    change: dict[str, Any], told: str, places: Places, manager: Manager
) -> None:
    """By name, with the reason; the upgrade goes on, and the memory is free."""
    for name, value in change.items():
        setattr(manager, name, value)
    outcome = port(places, manager, Late(places.root)).give_back(SESSION, LOST)
    assert set(outcome.values()) == {told}
    assert descriptor_holder.post(places).holder(SESSION) is None


def test_a_loss_is_told_whatever_else_has_that_name(places: Places, manager: Manager) -> None:
    """Services store many under one name; that another of them came does not make up for it."""
    manager.active = {UNIT}  # nothing is started: what is in its store is there already
    manager.store[UNIT] = [Stored("same", "/memfd:x (deleted)", 1, 12), Stored("same", "/memfd:x (deleted)", 1, 13)]
    came = [
        Checked(KeptDescriptor(UNIT, "same", at, 1, 0, 0, writable=True), 1, at, wrong)
        for at, wrong in ((11, "its checksum differs"), (12, ""), (13, ""))
    ]
    outcome = port(places, manager, FakeLiveUpdate())._give(came)
    assert outcome == {f"{UNIT}: same": "lost: its checksum differs"}
    manager.store[UNIT].pop(0)
    outcome = port(places, manager, FakeLiveUpdate())._give(came[1:])
    assert outcome == {f"{UNIT}: same": "lost: the service was started before they came"}


def test_a_session_that_is_gone_is_told_by_name(places: Places, manager: Manager) -> None:
    """What was to come stands in the plan; nothing is started for it."""
    outcome = port(places, manager, FakeLiveUpdate()).give_back(SESSION, LOST)
    assert set(outcome) == set(LOST)
    assert all("lost: " in word and "no session of that name" in word for word in map(str, outcome.values()))
    assert not manager.starts


def test_a_device_that_gives_no_answer_is_no_loss(places: Places, manager: Manager) -> None:
    """Whether they came is not known then: it is tried again, and nothing is written down."""
    real = port(places, manager, FakeLiveUpdate(refusals={RETRIEVE_SESSION: [errno.EIO]}))
    with pytest.raises(KupgradeError):
        real.give_back(SESSION, LOST)
    assert not real.given_back(SESSION)


def test_a_holder_goes_on_without_whoever_started_it(
    places: Places, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that is killed while they are retrieved leaves them to the next one."""

    children = []

    def killed(root: Path, name: str, work: Callable[[int], int]) -> bytes:
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                reader, writer = os.pipe()
                os.close(reader)
                status = work(writer)
            finally:
                os._exit(status)
        return b""

    monkeypatch.setattr(descriptor_holder.detached, "start", killed)
    real = port(places, manager, Late(places.root))
    with pytest.raises(KupgradeError, match="without a word"):
        real.fetch(SESSION)
    deadline = time.monotonic() + 10.0
    while descriptor_holder.post(places).holder(SESSION) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(real.give_back(SESSION, LOST).values()) == {RETURNED}
    assert os.waitpid(children[0], 0)[1] == 0


def stored(name: str, fd: int) -> Stored:
    status = os.fstat(fd)
    return Stored(name, os.readlink(f"/proc/self/fd/{fd}"), status.st_dev, status.st_ino)  # noqa: PTH115


@pytest.fixture
def full(manager: Manager) -> Manager:
    """A store with memory and with what is none."""
    for name, fd in (("table", memfd(b"table", SEALS)), ("wake", os.eventfd(0))):
        manager.kept.append((name, fd))
        manager.store.setdefault(UNIT, []).append(stored(name, fd))
    return manager


def test_what_is_held_outlives_who_asked_for_it(places: Places, full: Manager) -> None:
    """Measured and told, with what is lost; the holder is another process, and ends when it is told."""

    def take(unit: str, wanted: Sequence[Stored], _root: Path) -> list[Taken]:
        assert [each.name for each in wanted] == ["table"]
        # The holder closes what it inherits, as it must: here it makes its own.
        return [Taken(unit, "table", memfd(b"table", SEALS))]

    real = port(places, full, FakeLiveUpdate(), take)
    figures = real.hold(SESSION, (UNIT,), ())
    assert figures == {
        "files": 1,
        "bytes": 5,
        f"{UNIT}: table": f"5 bytes, CRC-32 {zlib.crc32(b'table'):08x}, seals 0xe",
        f"{UNIT}: wake": "lost: eventfd",
    }
    holder = descriptor_holder.post(places).holder(SESSION)
    assert holder is not None and holder.pid != os.getpid()
    assert real.held(SESSION) is False  # this process's fake has no session, as a kernel whose session is gone
    assert port(places, full, FakeLiveUpdate(there=False)).held(SESSION) is None
    real.let_go(SESSION)
    assert descriptor_holder.post(places).holder(SESSION) is None
    real.let_go(SESSION)  # done already


def test_a_loss_that_the_policy_refuses_stops_it_before_anything_is_held(places: Places, full: Manager) -> None:
    """The descriptor and its kind stand in the error."""
    with pytest.raises(KupgradeError, match=f"{UNIT}: wake would be lost") as caught:
        port(places, full, FakeLiveUpdate()).hold(SESSION, (UNIT,), (UNIT,))
    assert "eventfd" in caught.value.why
    assert descriptor_holder.post(places).holder(SESSION) is None


class Socket:
    """A manager's notification socket: what it was sent, and how it answers a barrier."""

    def __init__(self, path: Path, *, deaf: bool = False) -> None:
        self.said: list[str] = []
        self.deaf, self.waiting = deaf, list[int]()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
            self.said.append(data.decode())
            self.waiting += fds
            if data == b"BARRIER=1":
                break
        if not self.deaf:
            self.close()

    def close(self) -> None:
        while self.waiting:
            os.close(self.waiting.pop())


@pytest.mark.parametrize("deaf", [False, True])
def test_descriptors_are_sent_one_by_one_and_waited_for(
    deaf: bool, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their names; a manager that does not come to the end of them in time is an error."""
    path = short / "notify"
    there = Socket(path, deaf=deaf)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    fd = memfd(b"x")
    try:
        if deaf:
            with pytest.raises(KupgradeError, match="did not take"):
                descriptor_store.add([("table", fd)], patience=0.05)
        else:
            descriptor_store.add([("table", fd)], patience=10.0)
        there.thread.join(10.0)
        assert there.said == ["FDSTORE=1\nFDNAME=table\nFDPOLL=0", "BARRIER=1"]
    finally:
        os.close(fd)
        there.close()
        there.socket.close()


def test_a_giver_without_a_holder_or_a_manager_fails(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit status says so, and the unit's start with it."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(descriptor_giver, "Places", lambda: places)
    assert descriptor_giver.main([UNIT]) == 1
    with pytest.raises(KupgradeError, match="no store"):
        descriptor_store.add([])

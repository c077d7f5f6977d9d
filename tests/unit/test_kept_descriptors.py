"""Stored descriptors that are carried from kernel to kernel: measured, and compared with what was measured."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kupgrade.errors import BadInputError, KernelError, KupgradeError
from kupgrade.host.kept_descriptors import DescriptorIndex, KeptDescriptor, read_index
from kupgrade.host.preserved import framed
from kupgrade.kernel.liveupdate_errors import PRESERVE_FD
from kupgrade.machine import descriptor_holder
from kupgrade.machine.descriptor_holder import Checked, Held, fetch
from kupgrade.machine.places import Places
from tests.fakes.liveupdate import FakeLiveUpdate
from tests.fakes.stored_descriptors import OTHER, SEALS, SESSION, UNIT, came, held_here


def test_a_file_that_is_stored_twice_is_carried_once(tmp_path: Path) -> None:
    """The kernel takes each file once; both names keep it, and its measure is the same."""
    device = FakeLiveUpdate()
    index = held_here(device, tmp_path).index
    assert [(each.name, each.token, each.size) for each in index.descriptors] == [
        ("table", 1, 5), ("cache", 2, 500_000), ("same", 1, 5),
    ]  # fmt: skip
    assert (index.units, index.tokens) == ((UNIT, OTHER), (1, 2))
    assert [each.seals for each in index.of(UNIT)] == [SEALS, 0]
    assert len(device.outgoing[SESSION.encode()].files) == 3


def test_they_come_through_any_number_of_kernels(tmp_path: Path) -> None:
    """Whole, with their seals; each kernel hands them on without being asked."""
    device = FakeLiveUpdate()
    held = held_here(device, tmp_path)
    for _ in range(3):
        device.kexec()
        held = fetch(SESSION, tmp_path, device)
        assert [each.wrong for each in held.check()] == ["", "", ""]
        assert os.pread(held.fds[2], 10, 0) == b"cachecache"
        assert SESSION.encode() in device.outgoing and not device.incoming


def truncate(held: Held) -> None:
    os.ftruncate(held.fds[2], 10)


def overwrite(held: Held) -> None:
    os.pwrite(held.fds[2], b"C", 0)


def seal(held: Held) -> None:
    fcntl.fcntl(held.fds[2], fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)


@pytest.mark.parametrize(
    ("damage", "told"),
    [(truncate, "10 bytes of 500000"), (overwrite, "checksum differs"), (seal, "its seals are 0x4, they were 0x0")],
)
def test_what_is_not_as_it_was_measured_is_not_given_back(
    damage: Callable[[Held], None], told: str, tmp_path: Path
) -> None:
    """Size, content and seals are compared; the others are good all the same."""
    held = came(tmp_path)
    damage(held)
    wrong = {each.descriptor.name: each.wrong for each in held.check()}
    assert told in wrong["cache"] and not wrong["table"] and not wrong["same"]


def test_a_kernel_that_refuses_one_leaves_no_session(tmp_path: Path) -> None:
    """Half a session is none: the stores of this kernel have all of it."""
    device = FakeLiveUpdate(refusals={PRESERVE_FD: [errno.ENOMEM]})
    with pytest.raises(KernelError):
        held_here(device, tmp_path)
    assert not device.outgoing


def test_without_a_way_back_they_are_there_all_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A session that cannot be made again is told; to drop them for it would lose them for sure."""
    device = FakeLiveUpdate()
    held_here(device, tmp_path)
    device.kexec()
    device.refusals = {PRESERVE_FD: [errno.ENOMEM]}
    held = fetch(SESSION, tmp_path, device)
    assert held.session is None and [each.wrong for each in held.check()] == ["", "", ""]
    assert "no way back" in capfd.readouterr().err


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"00000000 {}",
        framed({"descriptors": []}) + b"x",
        framed({"descriptors": [], "format": "another/1"}),
        framed(DescriptorIndex((KeptDescriptor("a.service", "x", 0, 1, 1, 0, True),))),
    ],
)
def test_an_index_that_is_none_is_refused(data: bytes) -> None:
    """Cut off, of another format, or with its own token for a file."""
    with pytest.raises(BadInputError):
        read_index(data)


def ask(top: Path, index: DescriptorIndex) -> tuple[Checked, ...]:
    """What a holder of one file, which stands for all of them, answers."""
    places = Places(top)
    places.run.mkdir(parents=True)
    descriptor_holder.start(places, SESSION, lambda: Held(index, {1: os.memfd_create("one")}, None))
    try:
        return descriptor_holder.ask_check(places)
    finally:
        descriptor_holder.post(places).release(SESSION, "descriptors")


def test_thousands_of_descriptors_are_told_of() -> None:
    """Far more than one message can hold: none is lost without a word."""
    index = DescriptorIndex(
        tuple(KeptDescriptor(UNIT, f"connection-{at:05}", 1, 0, 0, 1, writable=True) for at in range(3000))
    )
    with TemporaryDirectory() as top:
        assert [each.descriptor for each in ask(Path(top), index)] == list(index.descriptors)


@pytest.mark.parametrize("sent", [0, 1], ids=["nothing", "some"])
def test_a_holder_that_ends_while_it_tells_has_not_told(sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors that nobody named are not known to be lost, and not returned either."""

    def breaks(_held: Held, line: socket.socket, found: Sequence[Checked]) -> None:
        for _ in range(sent):
            line.sendall(str(len(found)).encode())

    monkeypatch.setattr(Held, "_tell", breaks)
    index = DescriptorIndex((KeptDescriptor(UNIT, "table", 1, 0, 0, 1, writable=True),))
    with TemporaryDirectory() as top, pytest.raises(KupgradeError, match="not known"):
        ask(Path(top), index)

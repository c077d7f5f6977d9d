"""The root file system of a kernel beside another: what the commit does to it, from whatever state a kill left."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError, KernelError, KupgradeError
from kupgrade.kernel import blockfs, devmapper, loop, snapshot, superblock
from kupgrade.kernel.devmapper import Info, Segment
from kupgrade.kernel.libc import Libc
from kupgrade.kernel.snapshot import Status, Target
from kupgrade.machine import going_home, new_root
from kupgrade.model.handover import TakeOver

LIBC = Libc()
MERGING = ("72/2048 8", "40/2048 8", "8/2048 8")


class Mapper:
    """One mapped device. A merge goes on with each look; `refuses` names a target that the kernel does not take."""

    def __init__(self, kind: str | None, text: str = "") -> None:
        self.kind, self.text = kind, text
        self.todo = list(MERGING)
        self.waiting: Segment | None = None
        self.calls: list[str] = []
        self.refuses = ""

    def __enter__(self) -> Mapper:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def status(self, _name: str) -> tuple[Segment, ...] | None:
        if self.kind == "snapshot-merge" and self.todo:
            self.text = self.todo.pop(0)
        return None if self.kind is None else (Segment(0, 4096, self.kind, self.text),)

    def table(self, _name: str) -> tuple[Segment, ...] | None:
        return None if self.kind is None else (Segment(0, 4096, self.kind, "254:1 7:5 P 8"),)

    def info(self, _name: str) -> Info | None:
        return None if self.kind is None else Info(0, 1, suspended=self.suspended, active=True)

    suspended = False

    def suspend(self, _name: str, *, frozen: bool) -> None:
        self.calls.append("suspend frozen" if frozen else "suspend")

    def load(self, _name: str, table: Sequence[Segment]) -> None:
        self.calls.append(f"load {table[0].kind} {table[0].text}")
        if table[0].kind == self.refuses:
            raise KernelError("DM_TABLE_LOAD", "root", errno.EINVAL)
        self.waiting = table[0]

    def resume(self, _name: str) -> None:
        self.calls.append("resume")
        if self.waiting is not None:
            self.kind, self.text = (
                self.waiting.kind,
                self.waiting.text if self.waiting.kind == "linear" else "72/2048 8",
            )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a mapper in place; the detached loop devices are noted as its calls."""
    monkeypatch.setattr(new_root, "COW", tmp_path / "writes")
    monkeypatch.setattr(new_root, "LOOP", tmp_path / "writes.device")
    new_root.COW.touch()
    new_root.LOOP.symlink_to("/dev/loop5")
    monkeypatch.setattr(snapshot, "device", lambda number, _root: {"254:1": Path("/dev/vda1")}[number])
    monkeypatch.setattr(superblock, "uuid_of", lambda _: "uuid")
    monkeypatch.setattr(devmapper, "loaded", lambda: True)
    monkeypatch.setattr(going_home, "thaw", lambda _libc: None)

    def place(mapper: Mapper) -> Mapper:
        monkeypatch.setattr(devmapper, "open_control", lambda: mapper)
        monkeypatch.setattr(loop, "detach", lambda device: mapper.calls.append(f"detach {device}"))
        return mapper

    return place


MERGE = ["suspend", "load snapshot-merge /dev/vda1 /dev/loop5 P 8", "resume"]
LINEAR = ["suspend", "load linear /dev/vda1 0", "resume", "detach /dev/loop5"]


def test_the_disk_that_is_written_is_the_one_below_the_snapshot(
    machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the file system (a clone of the partition) that came up since has the same UUID."""
    mapper = machine(Mapper("snapshot", "2008/2048 8"))
    monkeypatch.setattr(superblock, "find", lambda _: Path("/dev/vdb1"))
    given: list[Path] = []
    monkeypatch.setattr(going_home, "prepare", lambda _libc, origin, *_: given.append(origin))
    new_root.prepare(LIBC, "uuid", tmp_path)
    assert given == [Path("/dev/vda1")]
    assert new_root.merge(LIBC, "uuid", 5.0) == 1.024
    assert mapper.calls == MERGE + LINEAR


def test_a_disk_that_holds_something_else_is_left_alone(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may have been given to another one."""
    mapper = machine(Mapper("snapshot", "2008/2048 8"))
    monkeypatch.setattr(superblock, "uuid_of", lambda _: "other")
    with pytest.raises(KupgradeError, match="gone"):
        new_root.merge(LIBC, "uuid", 5.0)
    assert mapper.calls == []


def test_what_was_written_goes_to_the_disk_and_the_store_is_given_back(machine) -> None:
    """Merge, wait, plain mapping; the megabytes are those of data, without the store's own."""
    mapper = machine(Mapper("snapshot", "2008/2048 8"))
    assert new_root.merge(LIBC, "uuid", 5.0) == 1.024
    assert mapper.calls == MERGE + LINEAR
    assert not mapper.todo
    assert not new_root.COW.exists()
    assert new_root.merged() is True


@pytest.mark.parametrize("written", [True, False])
def test_what_was_logged_is_written_home_without_a_merge(
    machine, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """The table is exchanged below the frozen file system; where a write fails the kernel's merge does it after all."""
    mapper = machine(Mapper("snapshot", "2008/2048 8"))
    monkeypatch.setattr(going_home, "finish", lambda made: written and made == "log")
    assert new_root.merge(LIBC, "uuid", 5.0, "log") == 1.024  # type: ignore[arg-type]
    assert mapper.calls == (["suspend frozen", *LINEAR[1:]] if written else MERGE + LINEAR)


def test_a_log_is_made_once_and_only_where_the_journal_can_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing is frozen any more, and the reason is said."""
    calls: list[str] = []
    monkeypatch.setattr(blockfs, "freeze", lambda *_: calls.append("freeze"))
    monkeypatch.setattr(blockfs, "thaw", lambda *_: calls.append("thaw"))
    disk, store = tmp_path / "disk", tmp_path / "store"
    disk.write_bytes(bytes(1 << 16))
    store.write_bytes(struct.pack("<IIII", 0x70416E53, 1, 1, 8).ljust(1 << 16, b"\0"))
    monkeypatch.setattr(going_home, "_direct", os.open)

    def look() -> Status:
        assert calls == ["freeze"], "the freeze itself writes"
        return Status(Target.SNAPSHOT, 128, used=16, room=128, metadata=16)

    assert going_home.prepare(LIBC, disk, store, look, tmp_path) is None  # no ext4
    assert calls == ["freeze", "thaw"]
    with pytest.raises(BadInputError, match="not read whole"):
        going_home.changed(store, Status(Target.SNAPSHOT, 128, used=24, room=128, metadata=16))
    (tmp_path / going_home.BEGUN).touch()
    assert going_home.prepare(LIBC, disk, store, look, tmp_path) is None
    assert calls == ["freeze", "thaw"]
    assert disk.read_bytes() == bytes(1 << 16)


@pytest.mark.parametrize("word", ["Invalid", "Overflow"])
def test_a_snapshot_that_the_freeze_has_filled_is_never_committed(
    machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """What is frozen is written first; when it found no room there is still a way back, until the flag."""
    mapper = machine(Mapper("snapshot", "2008/2048 8"))
    thawed: list[str] = []

    def freeze(*_: object) -> None:
        mapper.text = word

    monkeypatch.setattr(blockfs, "freeze", freeze)
    monkeypatch.setattr(going_home, "thaw", lambda _libc: thawed.append("thaw"))
    monkeypatch.setattr(going_home, "_direct", os.open)
    monkeypatch.setattr(snapshot, "device", lambda _number, _root: tmp_path / "disk")
    (tmp_path / "disk").write_bytes(bytes(1 << 16))
    with pytest.raises(KupgradeError, match="cannot be used"):
        new_root.prepare(LIBC, "uuid", tmp_path)
    assert thawed


def test_what_cannot_be_written_before_the_commit_prevents_it(
    machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The freeze told of an error: the snapshot does not hold what was written."""
    machine(Mapper("snapshot", "72/2048 8"))

    def freeze(*_: object) -> None:
        raise KernelError("FIFREEZE", "/", errno.EIO)

    monkeypatch.setattr(blockfs, "freeze", freeze)
    with pytest.raises(KernelError):
        new_root.prepare(LIBC, "uuid", tmp_path)


@pytest.mark.parametrize("what", ["ext4", "xfs"])
def test_a_file_system_whose_log_lies_elsewhere_is_not_mounted(
    machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """That device has no snapshot: before the commit the log of the old kernel, too, would be written."""
    mapper, disk, mounted = machine(Mapper(None)), tmp_path / "disk", list[object]()
    content = bytearray(1 << 16)
    if what == "ext4":
        content[1024 + 0x38 : 1024 + 0x3A] = b"\x53\xef"
        content[1024 + 0x5C] = 4  # has a journal, and no inode of it
    disk.write_bytes(content)
    options = "rw,relatime,logdev=/dev/vda2" if what == "xfs" else "rw"
    monkeypatch.setattr(superblock, "find", lambda _: disk)
    monkeypatch.setattr(Libc, "mount", lambda *arguments: mounted.append(arguments))
    monkeypatch.setattr(snapshot, "sectors_of", lambda _: 128)
    monkeypatch.setattr(snapshot, "snapshot", lambda *_: disk)
    with pytest.raises(KupgradeError, match="elsewhere"):
        new_root._mount(TakeOver("", "uuid", what, options, "", (), 0.0, {}), LIBC)
    assert not mounted
    assert mapper.calls == []


def test_a_table_that_a_killed_process_was_exchanging_goes_on_before_the_thaw(
    machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thaw writes the superblock: below it nobody would ever answer."""
    mapper = machine(Mapper("snapshot", "2008/2048 8"))
    monkeypatch.setattr(going_home, "thaw", lambda _libc: mapper.calls.append("thaw"))
    new_root.go_on(LIBC)
    mapper.suspended = True
    new_root.go_on(LIBC)
    assert mapper.calls == ["thaw", "resume", "thaw"]


def test_a_merge_that_was_begun_is_only_ended(machine) -> None:
    """Killed in between: the table is not loaded once more."""
    mapper = machine(Mapper("snapshot-merge"))
    new_root.merge(LIBC, "uuid", 5.0)
    assert mapper.calls == LINEAR


def test_a_merged_disk_is_left_alone(machine) -> None:
    """Done is done."""
    mapper = machine(Mapper("linear"))
    assert new_root.merge(LIBC, "uuid", 5.0) == 0.0
    assert mapper.calls == []


def test_a_refused_table_leaves_the_snapshot_in_use(machine) -> None:
    """The error is told, the device goes on, the store stays."""
    mapper = machine(Mapper("snapshot", "16/2048 8"))
    mapper.refuses = "snapshot-merge"
    with pytest.raises(KernelError):
        new_root.merge(LIBC, "uuid", 5.0)
    assert mapper.calls == MERGE
    assert new_root.COW.exists()
    assert new_root.merged() is False


@pytest.mark.parametrize("mapper", [Mapper(None), Mapper("snapshot", "Invalid")])
def test_nothing_is_merged_from_an_unusable_snapshot(machine, mapper: Mapper) -> None:
    """Gone or invalid: no table is touched."""
    machine(mapper)
    with pytest.raises(KupgradeError):
        new_root.merge(LIBC, "uuid", 5.0)
    assert mapper.calls == []


def test_a_merge_that_does_not_end_is_an_error(machine) -> None:
    """The snapshot goes on being merged, and the store stays."""
    mapper = machine(Mapper("snapshot-merge"))
    mapper.todo = ["72/2048 8"] * 9999
    with pytest.raises(KupgradeError, match="in time"):
        new_root.merge(LIBC, "uuid", 0.0)
    assert new_root.COW.exists()


def test_without_device_mapper_no_root_is_mapped_by_us(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary boot: nothing is opened, nothing is loaded."""
    machine(Mapper("linear"))
    monkeypatch.setattr(devmapper, "loaded", lambda: False)
    assert new_root.merged() is None
    monkeypatch.setattr(devmapper, "loaded", lambda: True)
    monkeypatch.setattr(going_home, "thaw", lambda _libc: None)
    machine(Mapper(None))
    assert new_root.merged() is None

"""The kernel's words about snapshots, the order in which a table is exchanged, and the node without udev."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

import pytest

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import devmapper, snapshot
from kupgrade.kernel.devmapper import DeviceMapper, Segment
from kupgrade.kernel.snapshot import Status, Target

NUMBER = os.makedev(253, 7)
NAMES = {
    devmapper.DM_DEV_CREATE: "create",
    devmapper.DM_DEV_REMOVE: "remove",
    devmapper.DM_DEV_STATUS: "info",
    devmapper.DM_TABLE_LOAD: "load",
    devmapper.DM_TABLE_STATUS: "status",
}


@pytest.mark.parametrize(
    ("segment", "wanted"),
    [
        (Segment(0, 1048576, "snapshot", "10504/131072 56"), Status(Target.SNAPSHOT, 1048576, 10504, 131072, 56)),
        (Segment(0, 1048576, "snapshot-merge", "16/131072 16"), Status(Target.MERGE, 1048576, 16, 131072, 16)),
        (Segment(0, 1048576, "snapshot", "Invalid"), Status(Target.SNAPSHOT, 1048576, failure="Invalid")),
        (Segment(0, 8, "snapshot", "Overflow"), Status(Target.SNAPSHOT, 8, failure="Overflow")),
        (Segment(0, 8, "snapshot-merge", "Merge failed"), Status(Target.MERGE, 8, failure="Merge failed")),
        (Segment(0, 8, "snapshot-merge", ""), Status(Target.MERGE, 8, failure="no figures")),
        (Segment(0, 1048576, "linear", ""), Status(Target.LINEAR, 1048576)),
        (Segment(0, 8, "thin", "1 2"), Status(Target.OTHER, 8)),
    ],
)
def test_the_kernels_status_is_read(segment: Segment, wanted: Status) -> None:
    """Figures where there are some; a broken store is told by the kernel's word, never by zeros."""
    found = snapshot.parse_status([segment])
    assert found == wanted
    assert found.merged is (wanted.target is Target.MERGE and wanted.used == 16)


def test_a_device_of_several_targets_or_none_is_not_ours() -> None:
    """Neither is taken for a snapshot, nor for a merged one."""
    two = [Segment(0, 8, "linear", ""), Segment(8, 8, "linear", "")]
    assert snapshot.parse_status(two) == Status(Target.OTHER, 16)
    assert snapshot.parse_status([]) == Status(Target.NONE, 0)


class Kernel:
    """Notes the calls, knows whether there is a device and whether it has a table; `fail`: errnos in turn, by call."""

    def __init__(self, *, there: bool = True, active: bool = True) -> None:
        self.there, self.active, self.loaded = there, active, False
        self.calls: list[str] = []
        self.fail: dict[str, list[int]] = {}
        self.tables: list[tuple[Segment, ...]] = []

    def __call__(self, _fd: int, request: int, argument: bytearray) -> int:
        fields = devmapper.HEADER.unpack_from(argument)
        suspending = bool(fields[7] & devmapper.SUSPENDED)
        call = NAMES.get(request) or ("suspend" if suspending else "resume")
        self.calls.append(call)
        assert fields[11].rstrip(b"\0") == b"root"
        if self.fail.get(call):
            raise OSError(self.fail[call].pop(0), "")
        if call != "create" and not self.there:
            raise OSError(errno.ENXIO, "")
        match call:
            case "create" if self.there:
                raise OSError(errno.EBUSY, "")
            case "create" | "remove":
                self.there, self.active, self.loaded = call == "create", False, False
            case "load":
                self.tables.append(devmapper.unpack_table(argument[fields[4] :], fields[5]))
                self.loaded = True
            case "resume" if self.loaded:
                self.active = True
        struct.pack_into("<I", argument, 28, devmapper.ACTIVE_PRESENT * self.active)
        struct.pack_into("<Q", argument, 40, NUMBER)
        return 0


def made(kernel: Kernel) -> DeviceMapper:
    return DeviceMapper(-1, kernel)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev in which the file dm-7, and every node made, is the block device; others are others."""
    (tmp_path / "dev/mapper").mkdir(parents=True)
    (tmp_path / "dev/dm-7").touch()
    (tmp_path / "dev/dm-8").touch()

    def number(path: Path) -> int | None:
        return {"dm-7": NUMBER, "dm-8": NUMBER + 1}.get(path.resolve().name) if path.exists() else None

    monkeypatch.setattr(snapshot, "_number", number)
    return tmp_path


def store(root: Path) -> Path:
    path = root / "store"
    path.write_bytes(b"SnAp" * 4096)
    return path


LINEAR = snapshot.table(Target.LINEAR, 8, Path("/dev/vda"), None)


def test_the_device_below_is_found_by_its_number(tmp_path: Path) -> None:
    """Whatever links udev made, or made not yet; a name with a slash is written with ! in sysfs."""
    numbers = tmp_path / "sys/dev/block"
    numbers.mkdir(parents=True)
    (numbers / "254:1").symlink_to("../../devices/pci0000:00/virtio0/block/vda/vda1")
    (numbers / "104:0").symlink_to("../../devices/pci0000:00/cciss0/block/cciss!c0d0")
    assert snapshot.device("104:0", tmp_path) == tmp_path / "dev/cciss/c0d0"

    class Mapper(DeviceMapper):
        def table(self, _name: str) -> tuple[Segment, ...] | None:
            return self.found

        found: tuple[Segment, ...] | None = (Segment(0, 8, "snapshot", "254:1 7:0 P 8"),)

        __slots__ = ()

    mapper = Mapper(-1)
    assert snapshot.origin(mapper, "root", tmp_path) == tmp_path / "dev/vda1"
    for nothing in (None, ()):
        Mapper.found = nothing
        with pytest.raises(KernelError) as caught:
            snapshot.origin(mapper, "root", tmp_path)
        assert caught.value.errno == errno.ENXIO
    with pytest.raises(KernelError):
        snapshot.device("9:9", tmp_path)


def test_a_table_is_exchanged_while_the_device_is_suspended() -> None:
    """Suspend freezes the file system first; resume brings the new table."""
    kernel = Kernel()
    snapshot.reload(made(kernel), "root", LINEAR)
    assert kernel.calls == ["suspend", "load", "resume"]
    assert kernel.tables == [(Segment(0, 8, "linear", "/dev/vda 0"),)]


def test_a_failed_exchange_lets_the_old_table_go_on() -> None:
    """Whatever the kernel says of the new table, nobody is left waiting at a suspended device."""
    kernel = Kernel()
    kernel.fail["load"] = [errno.EINVAL]
    with pytest.raises(KernelError, match="DM_TABLE_LOAD"):
        snapshot.reload(made(kernel), "root", LINEAR)
    assert kernel.calls[-1] == "resume"


def test_a_device_that_cannot_be_suspended_keeps_its_table() -> None:
    """No table is loaded under a file system that is not frozen."""
    kernel = Kernel()
    kernel.fail["suspend"] = [errno.EINVAL]
    with pytest.raises(KernelError):
        snapshot.reload(made(kernel), "root", LINEAR)
    assert "load" not in kernel.calls


def test_a_store_that_was_used_before_is_not_taken_over(root: Path) -> None:
    """The header of an earlier snapshot is overwritten before the new one is made."""
    kernel, used = Kernel(there=False), store(root)
    node = snapshot.snapshot(made(kernel), "root", Path("/dev/vda"), used, 8, root)
    assert used.read_bytes()[:4096] == bytes(4096)
    assert used.read_bytes()[4096:8192] == b"SnAp" * 1024
    assert kernel.calls == ["info", "create", "load", "resume", "info"]
    assert kernel.tables == [(Segment(0, 8, "snapshot", f"/dev/vda {used} P 8"),)]
    assert node == root / "dev/mapper/root"


@pytest.mark.parametrize("call", ["load", "resume"])
def test_a_snapshot_that_cannot_be_made_leaves_no_device(root: Path, call: str) -> None:
    """The kernel's error is told, and the next try finds nothing in its way."""
    kernel = Kernel(there=False)
    kernel.fail[call] = [errno.EINVAL]
    with pytest.raises(KernelError) as caught:
        snapshot.snapshot(made(kernel), "root", Path("/dev/vda"), store(root), 8, root)
    assert caught.value.errno == errno.EINVAL
    assert not kernel.there


def test_a_device_without_a_table_is_what_a_killed_process_left(root: Path) -> None:
    """It is replaced; one with a table is somebody's."""
    kernel = Kernel(active=False)
    snapshot.snapshot(made(kernel), "root", Path("/dev/vda"), store(root), 8, root)
    assert kernel.calls[:3] == ["info", "remove", "create"]
    with pytest.raises(KernelError) as caught:
        snapshot.snapshot(made(Kernel()), "root", Path("/dev/vda"), store(root), 8, root)
    assert caught.value.errno == errno.EBUSY


def test_a_link_that_udev_made_is_left_alone(root: Path) -> None:
    """Right is right, whoever made it."""
    link = root / "dev/mapper/root"
    link.symlink_to(root / "dev/dm-7")
    assert snapshot.ensure_node(made(Kernel()), "root", root) == link
    assert link.readlink() == root / "dev/dm-7"


@pytest.mark.parametrize("stale", [None, "../dm-8", "../dm-9"])
def test_without_udev_the_node_is_its_link(root: Path, stale: str | None) -> None:
    """Missing, leading to another device, or to none: it becomes what udev would make."""
    link = root / "dev/mapper/root"
    if stale:
        link.symlink_to(stale)
    snapshot.ensure_node(made(Kernel()), "root", root)
    assert str(link.readlink()) == "../dm-7"


def test_without_devtmpfs_a_real_node_is_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block device for root alone; and when udev was faster, udev's link is taken."""
    (root / "dev/dm-7").unlink()
    made_nodes = []
    monkeypatch.setattr(os, "mknod", lambda *arguments: made_nodes.append(arguments))
    snapshot.ensure_node(made(Kernel()), "root", root)
    assert made_nodes == [(root / "dev/mapper/root", stat.S_IFBLK | 0o600, NUMBER)]

    def late(path: Path, *_: object) -> None:
        (root / "dev/dm-7").touch()
        path.symlink_to("../dm-7")
        raise FileExistsError(errno.EEXIST, "")

    monkeypatch.setattr(os, "mknod", late)
    snapshot.ensure_node(made(Kernel()), "root", root)
    assert str((root / "dev/mapper/root").readlink()) == "../dm-7"


def test_a_missing_device_is_no_status_and_nothing_to_remove(root: Path) -> None:
    """None, and remove does nothing but take a stale link away."""
    (root / "dev/mapper/root").symlink_to("../dm-7")
    kernel = Kernel(there=False)
    assert snapshot.status(made(kernel), "root") is None
    snapshot.remove(made(kernel), "root", root)
    assert not (root / "dev/mapper/root").is_symlink()
    with pytest.raises(KernelError):
        snapshot.ensure_node(made(kernel), "root", root)


def test_a_device_in_use_for_a_moment_is_removed_after_it(root: Path) -> None:
    """Somebody looks at each new device; who does not let go is told."""
    kernel = Kernel()
    kernel.fail["remove"] = [errno.EBUSY, errno.EBUSY]
    snapshot.remove(made(kernel), "root", root)
    assert kernel.calls == ["remove"] * 3
    kernel = Kernel()
    kernel.fail["remove"] = [errno.EBUSY]
    with pytest.raises(KernelError) as caught:
        snapshot.remove(made(kernel), "root", root, patience=0.0)
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("found", [None, Status(Target.SNAPSHOT, 8, failure="Invalid"), Status(Target.NONE, 0)])
def test_an_unusable_snapshot_is_an_error(found: Status | None) -> None:
    """Gone or invalid: told with what that means, never taken for merged."""
    with pytest.raises(KupgradeError, match="root"):
        snapshot.check_sound(found, "root")


def test_the_size_comes_from_sysfs(tmp_path: Path) -> None:
    """In sectors, whatever the device's own block size is."""
    (tmp_path / "sys/class/block/vda").mkdir(parents=True)
    (tmp_path / "sys/class/block/vda/size").write_text("1048576\n")
    assert snapshot.sectors_of(Path("/dev/vda"), tmp_path) == 1048576

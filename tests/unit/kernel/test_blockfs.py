from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import KernelError
from kupgrade.kernel import blockfs
from kupgrade.kernel.blockfs import FreezeResult
from kupgrade.kernel.libc import FIFREEZE, FITHAW

MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
30 27 8:1 / /srv/my\\040data rw - xfs /dev/sda1 rw
31 27 8:2 / /mnt ro,relatime - ext4 /dev/sda2 rw
32 31 7:0 / /mnt/deep/loop rw - ext4 /dev/loop0 rw
33 27 0:50 /@ /home rw - btrfs /dev/sdb rw,subvol=/@
34 27 11:0 / /cdrom ro - iso9660 /dev/sr0 ro
35 27 8:1 /sub /bind rw - xfs /dev/sda1 rw
36 27 0:51 / /run rw - tmpfs tmpfs rw
"""


def test_mountinfo_is_read_with_its_escapes():
    """Blanks in paths come back, optional fields do not shift anything."""
    mounts = {m.mountpoint: m for m in blockfs.parse_mountinfo(MOUNTINFO)}
    assert mounts["/srv/my data"].source == "/dev/sda1"
    assert mounts["/"].super_options == ("rw", "errors=remount-ro")
    assert mounts["/bind"].subroot == "/sub"


@given(st.text())
def test_no_text_makes_the_mountinfo_parser_crash(text):
    """Lines of another shape are left out."""
    blockfs.parse_mountinfo(text)


PATHS = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs", "Z", "C"]) | st.sampled_from(" \t\n\\#"))


@given(PATHS, st.integers(1, 9999))
def test_an_escaped_path_comes_back(path, number):
    """Whatever the mount point is called, escaping as the kernel does and parsing gives it back."""
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in path)
    (mount,) = blockfs.parse_mountinfo(f"{number} 1 8:1 / /{escaped} rw - ext4 /dev/sda rw")
    assert (mount.id, mount.mountpoint) == (number, f"/{path}")


def test_freeze_order_is_safe():
    """Each writable block file system once, the loop before what holds it, deep before shallow, root last."""
    order = blockfs.freeze_order(blockfs.parse_mountinfo(MOUNTINFO), {"7:0": "/srv/my data/image"})
    assert [m.mountpoint for m in order] == ["/mnt/deep/loop", "/bind", "/home", "/mnt", "/"]


def test_a_loop_in_a_deep_place_goes_first_though_mounted_on_top():
    """The loop is mounted at /a and its file lies in /b/c/d: the last writes still go into /b/c/d."""
    text = (
        "1 0 8:0 / / rw - ext4 /dev/sda rw\n"
        "2 1 7:0 / /a rw - ext4 /dev/loop0 rw\n"
        "3 1 8:1 / /b/c/d rw - ext4 /dev/sdb rw\n"
    )
    order = blockfs.freeze_order(blockfs.parse_mountinfo(text), {"7:0": "/b/c/d/file"})
    assert [m.mountpoint for m in order] == ["/a", "/b/c/d", "/"]


def test_loops_are_found_through_device_mapper(put, tmp_path):
    """An encrypted loop is a loop."""
    put("sys/dev/block/7:3/loop/backing_file", "/var/disk.img\n")
    slave = tmp_path / "sys/dev/block/253:0/slaves/loop3"
    slave.parent.mkdir(parents=True)
    slave.symlink_to("../../7:3")
    assert blockfs.loop_files(["253:0", "8:0"], tmp_path) == {"253:0": "/var/disk.img"}


@pytest.mark.parametrize(
    ("call", "request_", "error", "result"),
    [
        (blockfs.freeze, FIFREEZE, None, FreezeResult.DONE),
        (blockfs.freeze, FIFREEZE, errno.EBUSY, FreezeResult.ALREADY),
        (blockfs.freeze, FIFREEZE, errno.EOPNOTSUPP, FreezeResult.UNSUPPORTED),
        (blockfs.thaw, FITHAW, None, FreezeResult.DONE),
        (blockfs.thaw, FITHAW, errno.EINVAL, FreezeResult.ALREADY),
    ],
)
def test_freezing_twice_or_what_cannot_be_frozen_is_told_apart(libc, tmp_path, call, request_, error, result):
    """The three answers of the kernel that are no failures."""
    libc.errors["ioctl"] = [error] if error else []
    assert call(libc, tmp_path) is result
    assert libc.calls == [("ioctl", request_, 0)]


@pytest.mark.parametrize(("call", "error"), [(blockfs.freeze, errno.EPERM), (blockfs.thaw, errno.EBUSY)])
def test_other_errors_of_freezing_are_raised(libc, tmp_path, call, error):
    """EIO, EPERM and the like are failures with the mount point's name."""
    libc.errors["ioctl"] = [error]
    with pytest.raises(KernelError) as caught:
        call(libc, tmp_path)
    assert (caught.value.errno, caught.value.path) == (error, str(tmp_path))


def test_free_bytes_of_a_real_directory(tmp_path):
    """statvfs says there is room; an absent path is an error."""
    assert blockfs.free_bytes(tmp_path) > 0
    with pytest.raises(KernelError):
        blockfs.free_bytes(tmp_path / "absent")


def test_a_disk_is_measured_by_reading_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate for a file of a mebibyte or more; none for one that is too small to tell, or not there."""
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    (tmp_path / "small").write_bytes(bytes(5000))
    asked: list[int] = []
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: (asked.append(flags), opened(path, flags & ~os.O_DIRECT))[1])
    assert (blockfs.read_rate(tmp_path / "large") or 0) > 0  # whatever the file system here can
    assert asked[0] & os.O_DIRECT
    assert blockfs.read_rate(tmp_path / "small") is None
    assert blockfs.read_rate(tmp_path / "missing") is None


def test_what_only_another_mount_namespace_shows_is_found_once(tmp_path):
    """A service in a namespace of its own can write to a disk that the host does not seem to use."""
    own = "50 1 8:9 / /data rw - ext4 /dev/sda9 rw\n"
    for pid, namespace, text in (
        (1, 10, MOUNTINFO),
        (7, 11, MOUNTINFO + own),
        (8, 11, ""),
        (9, 12, own),
        (10, 13, None),
    ):
        folder = tmp_path / f"proc/{pid}"
        (folder / "ns").mkdir(parents=True)
        (folder / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        if text is not None:
            (folder / "mountinfo").write_text(text)
    found = blockfs.mounts_elsewhere(blockfs.parse_mountinfo(MOUNTINFO), tmp_path)
    assert [mount.mountpoint for mount in found] == ["/data"]

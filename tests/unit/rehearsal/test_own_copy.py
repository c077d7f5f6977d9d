"""The copy of this host: which files, how much room, and that nothing stays behind."""

from __future__ import annotations

import fcntl
import io
import tarfile
from pathlib import Path

import pytest

from kupgrade.errors import KupgradeError, RefusedError
from kupgrade.kernel.blockfs import parse_mountinfo
from kupgrade.rehearsal import own_image, own_root

MOUNTS = """\
22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /run rw - tmpfs tmpfs rw
25 22 254:17 / /srv rw - xfs /dev/vdb1 rw
26 22 254:1 /home/data /var/www rw - ext4 /dev/vda1 rw
27 22 0:40 / /mnt/shared rw - nfs4 server:/export rw
28 24 254:33 / /run/media rw - ext4 /dev/vdc1 rw
29 25 254:49 / /srv/with\\040blank rw - vfat /dev/vdd1 rw
30 22 0:41 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
"""


def test_disks_go_along_and_what_is_elsewhere_is_named() -> None:
    """File systems on disks are in the view; a bind mount, a network file system and an overlay are left out, told."""
    found = own_root.view(parse_mountinfo(MOUNTS), ("/srv/with blank/",), "/var/lib/kupgrade/rehearsal/run-1", ())
    assert (found.root_type, found.mounted) == ("ext4", ("/srv",))
    assert {each.path: each.why for each in found.left_out} == {
        "/srv/with blank": "it was not wanted",
        "/var/www": "the same files as below /",
        "/mnt/shared": "a file system of the type nfs4 from server:/export",
        "/var/lib/docker/overlay2/x/merged": "a file system of the type overlay from overlay",
    }


def test_what_stays_away_is_no_pattern_by_accident() -> None:
    """Directories are kept empty, swap files are not there, and characters of patterns in names mean themselves."""
    found = own_root.view(parse_mountinfo(MOUNTS), ("/data[1]",), "/scratch", ("/swapfile", "/dev/vda5"))
    told = own_root.patterns(found)
    assert {"./tmp/*", "./data\\[1]/*", "./scratch/*", "./swapfile"} <= set(told)
    assert not any("vda5" in each for each in told)


def test_the_guest_mounts_its_disk_and_memory_only() -> None:
    """Of fstab only file systems in memory are left, beside the guest's own root."""
    text = "# a comment\nUUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\ntmpfs /var/cache/x tmpfs size=8M 0 0\n"
    assert own_root.fstab(text, "3-4") == "UUID=3-4 / ext4 defaults 0 0\ntmpfs /var/cache/x tmpfs size=8M 0 0\n"


def test_a_full_disk_is_refused_with_figures(tmp_path: Path) -> None:
    """Nothing is copied when it would not fit; the message says how much is needed and how much there is."""
    own_image.require_room(tmp_path, 1 << 20, 1 << 20)
    with pytest.raises(RefusedError) as caught:
        own_image.require_room(tmp_path, 1 << 60, 0)
    assert "MiB" in caught.value.why
    assert "--scratch" in caught.value.remedy


def test_the_copy_is_roots_alone_and_goes_with_the_rehearsal(tmp_path: Path) -> None:
    """Its directory is closed to others, and gone afterwards, also on another disk and after an error."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for scratch in (None, elsewhere):
        with pytest.raises(ZeroDivisionError), own_image.workplace(tmp_path, scratch) as directory:
            assert directory.stat().st_mode & 0o777 == 0o700
            assert (scratch or tmp_path / own_image.PLACE) == directory.parent
            assert (tmp_path / "var/lib/kupgrade").stat().st_mode & 0o077 == 0
            (directory / "disk.img").write_text("secret")
            _ = 1 // 0
        assert list((tmp_path / own_image.PLACE).iterdir()) == list(elsewhere.iterdir()) == []


def test_what_a_killed_rehearsal_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Directories whose lock nobody holds go, with what they link to; one that is at work stays."""
    place, elsewhere = tmp_path / own_image.PLACE, tmp_path / "big"
    for name in ("run-1-a", "run-2-b"):
        (place / name).mkdir(parents=True)
        (place / name / "lock").touch()
    (elsewhere / "copy").mkdir(parents=True)
    (place / "run-3-c").symlink_to(elsewhere / "copy")
    with (place / "run-1-a/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert own_image.sweep(place) == ("run-2-b", "run-3-c")
    assert [path.name for path in place.iterdir()] == ["run-1-a"]
    assert list(elsewhere.iterdir()) == []


def test_files_that_changed_meanwhile_are_told() -> None:
    """What tar says of files in motion is kept, each once; other remarks are not."""
    log = [
        "tar: ./var/lib/x/log: file changed as we read it",
        "tar: ./var/lib/x/log: file changed as we read it",
        "tar: ./var/spool/y: File removed before we read it",
        "tar: ./run/z: socket ignored",
    ]
    assert own_image.changed(log) == ("/var/lib/x/log", "/var/spool/y")


def test_settings_are_files_and_links_of_roots() -> None:
    """As they are laid over the copy."""
    data = own_image.packed({"etc/fstab": "x\n", "etc/systemd/system/default.target": own_image.Link("a.target")})
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        assert members["etc/systemd/system/default.target"].linkname == "a.target"
        assert (members["etc/fstab"].uid, members["etc/fstab"].mode) == (0, 0o644)


def test_a_copy_that_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds this host's secrets: where it lies, why it stays, and what to do."""

    def fails(_path: Path) -> None:
        raise PermissionError("read-only")

    with pytest.raises(KupgradeError, match=f"left in {tmp_path}") as caught, own_image.workplace(tmp_path, None):
        monkeypatch.setattr("shutil.rmtree", fails)
    assert (caught.value.why, caught.value.remedy) == ("read-only", "Remove it")

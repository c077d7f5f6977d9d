"""What a sandbox's mounts are made of, told from files as the kernel writes them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.kernel import mount_layout
from kupgrade.kernel.blockfs import Mount, parse_mountinfo
from kupgrade.kernel.mount_layout import Layer

BOOT = "0f0e0d0c0b0a09080706050403020100"
HOST = """\
25 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
26 25 0:24 / /run rw,nosuid,nodev shared:2 - tmpfs tmpfs rw,size=1000k,mode=755
27 25 0:25 / /proc rw,nosuid,nodev,noexec shared:3 - proc proc rw
28 25 0:26 / /tmp rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,size=2000k,nr_inodes=1048576,inode64
29 25 0:5 / /dev rw,nosuid shared:5 - devtmpfs udev rw
30 25 254:15 / /boot/efi rw,relatime shared:6 - vfat /dev/vda15 rw
31 25 254:16 / /srv rw,relatime shared:7 - ext4 /dev/vdb rw
"""
SANDBOX = f"""\
125 1 254:1 / / ro,relatime shared:1 - ext4 /dev/vda1 rw
126 125 0:24 / /run ro,nosuid,nodev shared:2 - tmpfs tmpfs rw,size=1000k,mode=755
127 125 0:25 / /proc rw,nosuid,nodev,noexec shared:3 - proc proc rw
128 125 0:26 / /tmp rw,nosuid,nodev shared:4 - tmpfs tmpfs rw
129 128 0:26 /systemd-private-{BOOT}-redis.service-X/tmp /tmp rw,nosuid,nodev - tmpfs tmpfs rw
130 125 0:5 / /dev rw,nosuid shared:5 - devtmpfs udev rw
131 130 0:50 / /dev rw,nosuid,noexec - tmpfs tmpfs rw,size=4096k,mode=755,seclabel
132 127 0:51 / /proc rw,nosuid,nodev,noexec - proc proc rw,hidepid=invisible
133 125 0:24 /systemd/inaccessible/dir /home ro,nosuid,nodev - tmpfs tmpfs rw
134 125 254:15 / /boot/efi ro,relatime shared:6 - vfat /dev/vda15 rw
136 132 0:51 /sys /proc/sys ro,nosuid,nodev,noexec - proc proc rw,hidepid=invisible
135 125 254:1 /var/lib/redis /var/lib/redis rw,relatime - ext4 /dev/vda1 rw
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Some of what the host has, and of what the service sees as its /dev."""
    (tmp_path / "run/systemd/inaccessible/dir").mkdir(parents=True)
    (tmp_path / f"tmp/systemd-private-{BOOT}-redis.service-X/tmp").mkdir(parents=True)
    (tmp_path / f"tmp/systemd-private-{BOOT}-redis.service-X").chmod(0o700)
    (tmp_path / "view/dev/pts").mkdir(parents=True)
    (tmp_path / "view/dev/core").symlink_to("/proc/kcore")
    return tmp_path


def found(host: Path, text: str = SANDBOX, carried: tuple[str, ...] = ()) -> dict[str, Layer]:
    made = mount_layout.layout(parse_mountinfo(text), parse_mountinfo(HOST), host / "view", carried, host)
    assert len({layer.mountpoint for layer in made.layers}) == len(made.layers)
    return {layer.mountpoint: layer for layer in made.layers}


def test_what_lies_below_another_mount_is_none_of_it() -> None:
    """Of mounts on one place only the last is seen, and what was mounted in an earlier one is covered with it."""
    seen = [each.id for each in mount_layout.visible(parse_mountinfo(SANDBOX))]
    assert seen == [125, 126, 132, 136, 129, 131, 133, 134, 135]
    below = SANDBOX + "137 130 0:60 / /dev/pts rw - devpts devpts rw\n138 125 254:1 /x /var rw - ext4 /dev/vda1 rw\n"
    assert [each.id for each in mount_layout.visible(parse_mountinfo(below))] == [*seen[:-1], 138]
    assert mount_layout.visible(()) == ()


def test_each_mount_is_told_in_the_hosts_paths(host: Path) -> None:
    """Binds with what leads to them where that is in memory; file systems of its own with options and nodes."""
    layers = found(host)
    assert layers["/"] == Layer("/", ("ro", "relatime"), "/", whole=True)
    assert layers["/boot/efi"] == Layer("/boot/efi", ("ro", "relatime"), "/boot/efi", whole=True)
    assert layers["/var/lib/redis"] == Layer("/var/lib/redis", ("rw", "relatime"), "/var/lib/redis")
    assert (layers["/proc"].source, layers["/proc"].data) == ("", "hidepid=invisible")
    assert (layers["/proc/sys"].source, layers["/proc/sys"].inside) == ("/proc/sys", True)
    home = layers["/home"]
    assert home.source == "/run/systemd/inaccessible/dir"
    assert [each.path for each in home.nodes] == ["/run/systemd", "/run/systemd/inaccessible", home.source]
    private = layers["/tmp"]
    assert private.source == f"/tmp/systemd-private-{BOOT}-redis.service-X/tmp"
    assert stat.S_IMODE(private.nodes[0].mode) == 0o700
    dev = layers["/dev"]
    assert (dev.source, dev.fstype, dev.data) == ("", "tmpfs", "size=4096k,mode=755")
    assert [(each.path, each.target) for each in dev.nodes] == [(".", ""), ("core", "/proc/kcore"), ("pts", "")]


def test_files_that_nobody_carries_are_not_lost_in_silence(host: Path) -> None:
    """In a file system of its own that goes along by its nodes alone; one that is empty holds what is mounted on it."""
    (host / "view/dev/file").touch()
    found(host)
    (host / "view/dev/file").write_text("x")
    with pytest.raises(KupgradeError, match="/dev/file"):
        found(host)
    found(host, carried=("/dev",))


def test_file_systems_in_memory_that_are_needed_go_along(host: Path) -> None:
    """Those that a bind or a carried file lies on, with their size; no others."""
    made = mount_layout.layout(parse_mountinfo(SANDBOX), parse_mountinfo(HOST), host / "view", (), host)
    assert [(each.mountpoint, each.data) for each in made.memory] == [
        ("/run", "size=1000k,mode=755"),
        ("/tmp", "size=2000k,nr_inodes=1048576,inode64"),
    ]
    bare = mount_layout.layout((), parse_mountinfo(HOST), host / "view", ("/tmp/own", "/var/own"), host)
    assert bare.layers == () and [each.mountpoint for each in bare.memory] == ["/tmp"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("140 125 0:70 / /mnt rw - overlay overlay rw", "overlay on /mnt"),
        ("140 125 0:70 /sub /mnt rw - tmpfs tmpfs rw", "tmpfs on /mnt"),
        ("140 125 254:1 /gone//deleted /mnt rw - ext4 /dev/vda1 rw", "ext4 on /mnt"),
        ("140 125 254:16 /data /mnt rw - ext4 /dev/vdb rw", "/srv/data on /mnt"),
        ("140 126 0:72 / /run/credentials/r.service ro - ramfs ramfs rw", "credentials in /run/credentials/r.service"),
        ("140 125 254:16 / /srv ro - ext4 /dev/vdb rw", ""),
        ("140 125 0:71 / /mnt rw - tmpfs tmpfs rw", ""),
        ("140 125 254:1 /opt/data /mnt rw - ext4 /dev/vda1 rw", ""),
    ],
)
def test_what_nobody_else_can_make_is_told(line: str, told: str) -> None:
    """Images, removed directories, parts of disks that are mounted later, credentials; nothing else."""
    theirs: tuple[Mount, ...] = parse_mountinfo(f"{SANDBOX}{line}\n")
    said = mount_layout.unmakeable(theirs, parse_mountinfo(HOST), "/run/credentials/r.service")
    assert len(said) == (1 if told else 0) and all(told in each for each in said)


def test_another_root_directory_cannot_be_made_again() -> None:
    """Only systemd knows how that image came there."""
    theirs = parse_mountinfo("125 1 254:1 /opt/tree / rw,relatime - ext4 /dev/vda1 rw\n")
    assert mount_layout.unmakeable(theirs, parse_mountinfo(HOST)) == ("/opt/tree as its root",)

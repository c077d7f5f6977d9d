"""What a service's namespaces are like, told from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.kernel import namespaces
from kupgrade.kernel.blockfs import parse_mountinfo
from kupgrade.kernel.namespaces import Held

HOST = """\
25 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
26 25 0:24 / /run rw,nosuid,nodev shared:2 - tmpfs tmpfs rw
27 25 0:25 / /proc rw,nosuid,nodev,noexec shared:3 - proc proc rw
28 25 0:26 / /tmp rw,nosuid,nodev shared:4 - tmpfs tmpfs rw
29 25 0:5 / /dev rw,nosuid shared:5 - devtmpfs udev rw
"""
SANDBOX = """\
125 1 254:1 / / ro,relatime shared:1 - ext4 /dev/vda1 rw
126 125 0:24 / /run ro,nosuid,nodev shared:2 - tmpfs tmpfs rw
127 125 0:25 / /proc rw,nosuid,nodev,noexec shared:3 - proc proc rw
128 125 0:26 / /tmp rw,nosuid,nodev shared:4 - tmpfs tmpfs rw
129 125 0:26 /systemd-private-0f0f-redis.service-X/tmp /tmp rw,nosuid,nodev - tmpfs tmpfs rw
130 125 254:1 /var/tmp/systemd-private-0f0f-redis.service-Y/tmp /var/tmp rw,relatime - ext4 /dev/vda1 rw
131 125 254:1 /var/lib/redis /var/lib/redis rw,relatime - ext4 /dev/vda1 rw
132 125 0:50 / /dev ro,nosuid,noexec - tmpfs tmpfs rw
133 125 0:51 / /srv rw,relatime - tmpfs tmpfs rw
134 125 0:52 / /home ro,relatime - tmpfs tmpfs rw
"""


def test_a_sandbox_is_what_differs_from_the_host() -> None:
    """Other flags on the same mount point, and mount points that the host has not; what is the same is none of it."""
    found = namespaces.own_mounts(parse_mountinfo(SANDBOX), parse_mountinfo(HOST))
    assert Held("/", ("ro",), hosts=True) in found
    assert Held("/run", ("ro", "nosuid", "nodev"), hosts=True) in found
    assert Held("/var/lib/redis", (), hosts=False) in found
    assert not any(each.mountpoint == "/proc" for each in found)


def test_a_sandbox_that_lacks_nothing_may_have_other_directories_below() -> None:
    """Names of private directories are new with every start."""
    other = SANDBOX.replace("0f0f-redis.service-X", "1111-redis.service-Z")
    host = parse_mountinfo(HOST)
    assert namespaces.own_mounts(parse_mountinfo(SANDBOX), host) == namespaces.own_mounts(parse_mountinfo(other), host)


EARLY = """\
125 1 254:1 / / ro,relatime shared:1 - ext4 /dev/vda1 rw
126 125 0:24 / /sys rw,nosuid,nodev,noexec shared:2 - sysfs sysfs rw
131 125 254:1 /var/lib/redis /var/lib/redis rw,relatime - ext4 /dev/vda1 rw
"""


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (Held("/", ("ro",), hosts=True), ""),
        (Held("/", ("ro", "noexec"), hosts=True), "/ ro,noexec"),
        (Held("/sys/kernel/debug", ("ro", "nosuid"), hosts=True), ""),  # not mounted yet
        (Held("/proc/sys", ("ro",), hosts=False), ""),
        (Held("/sys/module", ("ro",), hosts=False), "/sys/module ro"),
        (Held("/var/lib/redis", (), hosts=False), ""),
        (Held("/a b", ("ro", "nodev"), hosts=False), "/a b ro,nodev"),
    ],
)
def test_a_sandbox_that_holds_less_is_told_from_one_in_a_system_that_just_starts(held: Held, words: str) -> None:
    """What is the host's may not be mounted yet; a mount of its own that is missing is held by what is above it."""
    assert namespaces.weaker((held,), parse_mountinfo(EARLY)) == ((words,) if words else ())


def test_a_sandbox_is_no_weaker_than_itself() -> None:
    """Whatever it has."""
    sandbox = parse_mountinfo(SANDBOX)
    assert namespaces.weaker(namespaces.own_mounts(sandbox, parse_mountinfo(HOST)), sandbox) == ()
    assert namespaces.weaker(namespaces.own_mounts(sandbox, ()), sandbox) == ()


def test_private_directories_are_found_where_they_are_mounted() -> None:
    """Whether they lie in memory or on a disk."""
    assert namespaces.private_directories(parse_mountinfo(SANDBOX)) == ("/tmp", "/var/tmp")
    assert namespaces.private_directories(parse_mountinfo(HOST)) == ()


def test_writable_memory_of_its_own_is_told_from_the_hosts() -> None:
    """Devices and what cannot be written hold nothing that is worth carrying."""
    assert namespaces.memory_mounts(parse_mountinfo(SANDBOX), parse_mountinfo(HOST)) == ("/srv",)


@pytest.mark.parametrize(
    ("text", "number", "same"),
    [
        ("         0          0 4294967295\n", 33, True),
        ("0 0 1\n110 110 1\n", 110, True),
        ("0 0 1\n110 110 1\n", 111, False),
        ("0 100000 65536\n", 33, False),
        ("", 33, False),
        ("garbage\n", 33, False),
    ],
)
def test_an_id_is_the_same_inside_and_outside(text: str, number: int, same: bool) -> None:
    """By the line of the map that holds it."""
    assert namespaces.same_id(text, number) is same


STATUS = """\
Name:\tredis-server
Uid:\t{uid}\t{uid}\t{uid}\t{uid}
Gid:\t110\t110\t110\t110
CapInh:\t0000000000000000
CapPrm:\t{permitted:016x}
CapEff:\t0000000000000000
CapBnd:\t{bounding:016x}
CapAmb:\t0000000000000000
NoNewPrivs:\t{nnp}
"""


@pytest.mark.parametrize(
    ("uid", "permitted", "bounding", "nnp", "powerless"),
    [
        (110, 0, 0, 1, True),
        (110, 0, 0, 0, True),
        (110, 0, 0x1FF, 1, True),
        (110, 0, 0x1FF, 0, False),
        (110, 1, 0, 1, False),
        (0, 0, 0, 1, False),
    ],
)
def test_who_has_no_capability_and_no_way_to_one_is_powerless(
    tmp_path: Path,
    uid: int,
    permitted: int,
    bounding: int,
    nnp: int,
    powerless: bool,
) -> None:
    """A set-user-ID program is a way, unless no privileges can be gained or none are within bounds."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "status").write_text(STATUS.format(uid=uid, permitted=permitted, bounding=bounding, nnp=nnp))
    assert namespaces.credentials(7, tmp_path).powerless is powerless


@pytest.mark.parametrize(("gids", "kept"), [("0 0 1\n110 110 1\n", True), ("0 110 1\n", False)])
def test_ids_are_kept_when_both_are(tmp_path: Path, gids: str, kept: bool) -> None:
    """User and group each have a map."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "status").write_text(STATUS.format(uid=109, permitted=0, bounding=0, nnp=1))
    (folder / "uid_map").write_text("0 0 1\n109 109 1\n")
    (folder / "gid_map").write_text(gids)
    assert namespaces.keeps_ids(7, tmp_path) is kept

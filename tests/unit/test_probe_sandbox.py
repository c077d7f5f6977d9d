"""What surrounds a service: which files in memory are its own, and which it would lose."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade import probe_sandbox
from kupgrade.host.systemd import Unit, unit_of
from kupgrade.kernel.process import Fd, FdKind, Mapping
from kupgrade.model.workload import Carried
from kupgrade.probe_sandbox import Around

MOUNTS = """\
25 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw
26 25 0:24 / /run rw,nosuid,nodev shared:2 - tmpfs tmpfs rw
27 25 0:25 / /dev/shm rw,nosuid,nodev shared:3 - tmpfs tmpfs rw
"""
PRIVATE = "28 25 254:1 /tmp/systemd-private-0f-db.service-x/tmp /tmp rw - ext4 /dev/vda1 rw\n"
PROCESS = 500
DB = 105


def unit(**values: str) -> Unit:
    return unit_of("db.service", {"LoadState": "loaded", "ActiveState": "active", **values})


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A root with /proc of PID 1 and of the service's main process, whose root is the same."""
    for pid in (1, PROCESS):
        folder = tmp_path / "proc" / str(pid)
        (folder / "ns").mkdir(parents=True)
        for number, kind in enumerate(("mnt", "uts", "user")):
            (folder / "ns" / kind).symlink_to(f"{kind}:[{4026531830 + number}]")
        (folder / "root").symlink_to(tmp_path)
        (folder / "mountinfo").write_text(MOUNTS)
    (tmp_path / "proc/self").symlink_to("1")
    for folder in ("run/db", "run/postgresql", "dev/shm"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def separate(host: Path, kind: str) -> None:
    link = host / f"proc/{PROCESS}/ns/{kind}"
    link.unlink()
    link.symlink_to(f"{kind}:[4026532999]")


def around(host: Path, found: Unit | None, uids: frozenset[int] = frozenset({0, DB})) -> Around:
    return Around(PROCESS, uids, found, host)


def test_what_the_unit_names_is_its_own(host: Path) -> None:
    """PID file and run-time directories, when they are in memory."""
    found = unit(PIDFile="/run/db.pid", RuntimeDirectory="db more")
    assert probe_sandbox.carried(around(host, found, frozenset({0})), ()) == (
        Carried("/run/db.pid"),
        Carried("/run/db"),
        Carried("/run/more"),
    )
    on_disk = unit(PIDFile="/var/lib/db/pid")
    assert probe_sandbox.carried(around(host, on_disk, frozenset({0})), ()) == ()


def test_beside_its_sockets_and_in_shared_memory_the_users_files_are_its_own(host: Path) -> None:
    """Of its own users only, and nothing right in a directory that every boot has; names without a path are none."""
    sockets = ("/run/postgresql/.s.PGSQL.5432", "/run/notify", "@abstract", "", "/var/lib/db/socket")
    assert probe_sandbox.carried(around(host, None), sockets) == (
        Carried("/run/postgresql", (DB,)),
        Carried("/dev/shm", (DB,)),
    )


def test_private_directories_go_along_wherever_they_lie(host: Path) -> None:
    """The next start gets new ones, on a disk, too."""
    separate(host, "mnt")
    (host / f"proc/{PROCESS}/mountinfo").write_text(MOUNTS + PRIVATE)
    found = around(host, unit(), frozenset({0}))
    assert probe_sandbox.carried(found, ()) == (Carried("/tmp"),)
    assert probe_sandbox.sandbox_facts(found, ()).kinds == ("mnt",)


def test_what_no_unit_made_is_not_made_again(host: Path) -> None:
    """A tree that systemd did not start has nobody to make its namespaces."""
    separate(host, "mnt")
    separate(host, "uts")
    assert probe_sandbox.sandbox_facts(around(host, None), ()).kinds == ()
    assert probe_sandbox.sandbox_facts(around(host, unit()), ()).kinds == ("mnt", "uts")


def test_settings_that_stand_in_the_way_are_facts(host: Path) -> None:
    """Of the unit; and System V objects of the service's users, shared memory apart."""
    folder = host / "proc/sysvipc"
    folder.mkdir()
    (folder / "sem").write_text(f"key semid uid cuid\n0 3 {DB} {DB}\n0 4 7 7\n")
    (folder / "shm").write_text(f"key shmid size uid cuid\n0 9 56 {DB} {DB}\n")
    found = unit(RootDirectory="/srv", DynamicUser="yes", MemoryDenyWriteExecute="yes")
    facts = probe_sandbox.sandbox_facts(around(host, found), ())
    assert (facts.own_root, facts.dynamic_user, facts.denies_write_execute) == ("/srv", True, True)
    assert facts.ipc_objects == ("sem 3",)


@pytest.mark.parametrize(
    ("name", "device", "kind", "lost"),
    [
        ("/run/db/state", (0, 24), FdKind.FILE, False),
        ("/run/other", (0, 24), FdKind.FILE, True),
        ("/run/other", (0, 24), FdKind.FIFO, True),
        ("/run", (0, 24), FdKind.DIRECTORY, False),
        ("/var/lib/db/data", (254, 1), FdKind.FILE, False),
        ("/dev/shm/Segment", (0, 25), FdKind.FILE, True),
        ("/dev/null", (1, 3), FdKind.DEVICE, False),
    ],
)
def test_an_open_file_in_memory_that_does_not_go_along_is_told(
    host: Path,
    name: str,
    device: tuple[int, int],
    kind: FdKind,
    lost: bool,
) -> None:
    """Shared memory of somebody else's is not taken, even when it is open here."""
    (host / "dev/shm/Segment").touch()
    import os

    found = around(host, unit(RuntimeDirectory="db"), frozenset({DB + os.getuid() + 1}))
    carried = probe_sandbox.carried(found, ())
    fd = Fd(3, kind, name, name, device=os.makedev(*device))
    devices = probe_sandbox.volatile_devices(found)
    assert probe_sandbox.left_behind(found, carried, devices, fd) is lost


def test_a_mapped_file_in_memory_is_told_alike(host: Path) -> None:
    """Not one without a name, which goes with the memory; nor one on a disk."""

    def mapping(path: str, device: str, *, deleted: bool = False) -> Mapping:
        return Mapping(0, 4096, "rw-s", 0, device, 7, path, deleted)

    found = around(host, unit(RuntimeDirectory="db"))
    maps = (
        mapping("/run/db/state", "00:18"),
        mapping("/run/other", "00:18"),
        mapping("/run/gone", "00:18", deleted=True),
        mapping("/usr/lib/x.so", "fe:01"),
        mapping("[heap]", "00:00"),
    )
    devices = probe_sandbox.volatile_devices(found)
    carried = probe_sandbox.carried(found, ())
    assert probe_sandbox.mappings_left_behind(found, carried, devices, maps) == ("/run/other",)

"""Facts of a workload on hosts where its processes come, go, swap and wait to be reaped."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kupgrade import probe_workload
from kupgrade.errors import KernelError
from kupgrade.host.systemd import Systemd, unit_of
from kupgrade.kernel import blockfs, process
from kupgrade.model.facts import WorkloadFacts
from kupgrade.model.policy import WorkloadPolicy
from tests.fakes import facts as fake

MAIN, CHILD = 500, 501
KINDS = ("ipc", "mnt", "net", "pid", "user", "uts")
MOUNTS = "25 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw\n26 25 0:24 / /mnt/huge rw - hugetlbfs none rw\n"
STAT = "{pid} (db) {state} {parent} {pid} {pid} 0 -1 0 " + "0 " * 10 + "1 0 {pid} 0 0\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with PID 1 and a tree of two processes; no unix sockets."""
    add(tmp_path, 1, 0)
    add(tmp_path, MAIN, 1)
    add(tmp_path, CHILD, MAIN)
    (tmp_path / "proc/self").symlink_to("1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/db.pid").write_text(f"{MAIN}\n")
    monkeypatch.setattr(probe_workload, "_unix_peers", dict)
    return tmp_path


def add(root: Path, pid: int, parent: int) -> None:
    folder = root / "proc" / str(pid)
    for name in ("ns", "fd", "fdinfo"):
        (folder / name).mkdir(parents=True)
    for number, kind in enumerate(KINDS):
        (folder / "ns" / kind).symlink_to(f"{kind}:[{4026531830 + number}]")
    (folder / "stat").write_text(STAT.format(pid=pid, parent=parent, state="S"))
    (folder / "status").write_text("Name:\tdb\nUid:\t33\t33\t33\t33\nGid:\t33\t33\t33\t33\n")
    (folder / "cgroup").write_text("0::/db\n")
    (folder / "maps").write_text("")
    (folder / "mountinfo").write_text(MOUNTS)
    for name in ("uid_map", "gid_map"):
        (folder / name).write_text("0 0 4294967295\n")
    (folder / "cwd").symlink_to("/")
    (folder / "root").symlink_to(root)


def observed(root: Path) -> WorkloadFacts:
    entry = WorkloadPolicy("db", pidfile="/run/db.pid")
    return probe_workload.observe_workload(entry, fake.policy(), Systemd(root), root)


def test_a_zombie_among_the_processes_is_seen_for_what_it_is(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a PID and nothing else: no working directory, and namespaces that are listed but lead nowhere."""
    folder, real = host / "proc" / str(CHILD), process.namespaces
    (folder / "stat").write_text(STAT.format(pid=CHILD, parent=MAIN, state="Z"))
    (folder / "cwd").unlink()

    def namespaces(pid: int, root: Path) -> dict[str, int]:
        if pid == CHILD:
            raise KernelError("readlink", str(folder / "ns/mnt"), errno.ENOENT)
        return real(pid, root)

    monkeypatch.setattr(process, "namespaces", namespaces)
    seen = observed(host)
    assert seen.workload is not None and seen.workload.pids == (MAIN, CHILD)
    assert [(each.pid, each.namespaces, each.apart) for each in seen.processes] == [(MAIN, (), ()), (CHILD, (), ())]


@pytest.mark.parametrize("gone", ["fds", "mappings", "namespaces", "memory"])
def test_a_server_whose_processes_come_and_go_is_seen_all_the_same(
    host: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """With thousands of processes one always ends while they are looked at: it is left out, the others are kept."""
    real = getattr(process, gone)

    def ask(pid: int, root: Path) -> object:
        if pid == CHILD:
            (root / f"proc/{CHILD}/stat").unlink(missing_ok=True)
            raise KernelError("open", f"/proc/{pid}", errno.ESRCH)
        return real(pid, root)

    monkeypatch.setattr(process, gone, ask)
    seen = observed(host)
    assert seen.workload is not None and seen.workload.pids == (MAIN,)
    assert [each.pid for each in seen.processes] == [MAIN]


def test_threads_that_outlive_their_leader_are_not_left_out(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks like a zombie and has no namespaces, and yet it runs: nobody could say what it holds."""
    stat = STAT.replace("1 0 {pid} 0 0", "3 0 {pid} 0 0").format(pid=CHILD, parent=MAIN, state="Z")
    (host / f"proc/{CHILD}/stat").write_text(stat)
    real = process.namespaces

    def namespaces(pid: int, root: Path) -> dict[str, int]:
        if pid == CHILD:
            raise KernelError("readlink", f"/proc/{pid}/ns/mnt", errno.ENOENT)
        return real(pid, root)

    monkeypatch.setattr(process, "namespaces", namespaces)
    with pytest.raises(KernelError, match="501/ns/mnt"):
        observed(host)


def test_one_that_ends_before_its_directory_is_asked_for_is_no_obstacle(host: Path) -> None:
    """Its link is gone with it."""
    (host / f"proc/{CHILD}/cwd").unlink()
    assert observed(host).workload is not None


def test_memory_that_is_swapped_out_counts(host: Path) -> None:
    """It is read back and stands in the images like all other memory."""
    (host / f"proc/{MAIN}/smaps_rollup").write_text("Rss: 10 kB\nAnonymous: 8 kB\nSwap: 4096 kB\n")
    assert observed(host).anonymous_bytes == (8 + 4096) << 10


def test_huge_pages_of_a_file_without_a_name_are_seen(host: Path) -> None:
    """QEMU and DPDK unlink theirs, wherever hugetlbfs is mounted."""
    line = "7f0000000000-7f0040000000 rw-s 00000000 00:18 77 /mnt/huge/guest.xK3 (deleted)\n"
    (host / f"proc/{MAIN}/maps").write_text(line)
    status = host / f"proc/{MAIN}/status"
    status.write_text(status.read_text() + "HugetlbPages:\t 1048576 kB\n")
    assert [each.hugetlb for each in observed(host).processes] == [True, False]


def test_without_the_unified_hierarchy_a_service_is_not_taken_for_empty(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cgroup v1 no process has a path by which it is the service's: a plan for none of them would keep nothing."""
    path = "/system.slice/db.service"
    for pid in (MAIN, CHILD):
        (host / f"proc/{pid}/cgroup").write_text(f"4:memory:{path}\n1:name=systemd:{path}\n")
    values = {"LoadState": "loaded", "ActiveState": "active", "MainPID": str(MAIN), "ControlGroup": path}
    monkeypatch.setattr(Systemd, "show", lambda _, name: unit_of(name, values))
    entry = WorkloadPolicy("db", unit="db.service")
    seen = probe_workload.observe_workload(entry, fake.policy(), Systemd(host), host)
    assert seen.workload is None
    assert str(MAIN) in seen.absent and "cgroup v2" in seen.absent


def test_many_open_files_below_many_mounts_are_told_in_a_moment(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of containers has thousands of mounts, a database tens of thousands of files: each is looked up once."""
    looked: list[str] = []
    real = blockfs.holding
    monkeypatch.setattr(blockfs, "holding", lambda every, path: looked.append(path) or real(every, path))
    maps = "".join(f"{at:x}000-{at + 1:x}000 r--s 00000000 fe:01 {at} /srv/db/{at}\n" for at in range(1, 3001))
    (host / f"proc/{MAIN}/maps").write_text(maps)
    assert observed(host).elsewhere == ()
    assert len(looked) < 100

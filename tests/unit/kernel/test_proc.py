from __future__ import annotations

import os

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import proc, process

STAT = "{pid} ({comm}) S {ppid} {pid} {pid} 0 -1 {flags} " + "0 " * 10 + "{threads} 0 {start} 0 0\n"


@pytest.fixture
def add(put):
    """Add a process to the fake root."""

    def process_(pid, ppid=1, comm="sh", cgroup="/", flags=0, threads=1, cmdline="", uid=0, extra=""):
        start = 1000 + pid
        put(
            f"proc/{pid}/stat",
            STAT.format(pid=pid, ppid=ppid, comm=comm, flags=flags, threads=threads, start=start),
        )
        put(f"proc/{pid}/status", f"Name:\t{comm}\nUid:\t{uid}\t0\t0\t0\n{extra}")
        put(f"proc/{pid}/cgroup", f"1:name=systemd:/x\n0::{cgroup}\n")
        put(f"proc/{pid}/cmdline", cmdline)

    return process_


def test_a_hostile_comm_does_not_shift_the_fields(add, tmp_path):
    """comm may hold blanks and parentheses; the fields after it are still right."""
    add(7, ppid=3, comm="a) R 9 (b c", threads=4)
    found = proc.process(7, tmp_path)
    assert (found.comm, found.ppid, found.nthreads, found.starttime) == ("a) R 9 (b c", 3, 4, 1007)


def test_facts_of_status_are_read(add, tmp_path):
    """Tracer, seccomp mode and the PIDs in nested namespaces come from status."""
    add(7, uid=33, extra="TracerPid:\t12\nSeccomp:\t2\nNSpid:\t7\t1\n")
    found = proc.process(7, tmp_path)
    assert (found.uid, found.tracer, found.seccomp, found.namespace_pids) == (33, 12, 2, (7, 1))


def test_kernel_threads_are_told_apart(add, tmp_path):
    """PF_KTHREAD in the flags marks a kernel thread."""
    add(2, flags=proc.PF_KTHREAD | 0x40)
    add(3)
    assert [p.kernel_thread for p in proc.processes(tmp_path)] == [True, False]


def test_a_process_that_vanishes_is_left_out(add, tmp_path):
    """A process that ends while /proc is read is no error."""
    add(5)
    (tmp_path / "proc/6").mkdir()
    assert [p.pid for p in proc.processes(tmp_path)] == [5]


def test_in_cgroup_takes_sub_cgroups_but_no_namesakes(add, tmp_path):
    """/a.service/x is in /a.service, /a.service2 is not."""
    add(10, cgroup="/a.service")
    add(11, cgroup="/a.service/x")
    add(12, cgroup="/a.service2")
    everybody = proc.processes(tmp_path)
    assert [p.pid for p in proc.in_cgroup(everybody, "/a.service")] == [10, 11]
    assert len(proc.in_cgroup(everybody, "/")) == 3


def test_descendants_come_after_their_parents(add, tmp_path):
    """Whatever the PIDs, a parent is listed before its children."""
    for pid, ppid in ((50, 1), (20, 50), (30, 20), (60, 50), (70, 1)):
        add(pid, ppid)
    assert [p.pid for p in proc.descendants(proc.processes(tmp_path), 50)] == [50, 20, 60, 30]


@pytest.mark.parametrize(
    ("cmdline", "uid", "found"),
    [
        ("/bin/sh\0/kupgrade-deadman\x00300\0", 0, 9),
        ("/kupgrade-deadman\x00300\0", 0, 9),
        ("vi\0-R\0/kupgrade-deadman\0", 0, None),
        ("/bin/sh\0/kupgrade-deadman\x00300\0", 1000, None),
    ],
)
def test_the_deadman_is_found_by_its_script_and_owner(add, tmp_path, cmdline, uid, found):
    """A shell of root that runs the dead-man's script is it; nothing else is."""
    add(9, cmdline=cmdline, uid=uid)
    assert proc.find_deadman(tmp_path) == found


def test_taint_is_given_in_letters(put, tmp_path):
    """Bits become the letters of an oops; new bits keep their number."""
    put("proc/sys/kernel/tainted", str(1 | 1 << 12 | 1 << 25))
    assert proc.kernel_taint(tmp_path) == ("P", "O", "bit25")


def test_meminfo_is_in_bytes(put, tmp_path):
    """kB become bytes, counts stay counts."""
    put("proc/meminfo", "MemAvailable:   100 kB\nHugePages_Total:   3\n")
    assert proc.meminfo(tmp_path) == {"MemAvailable": 102400, "HugePages_Total": 3}


def test_unreadable_facts_are_errors_with_a_path(tmp_path):
    """A missing file names itself."""
    with pytest.raises(KernelError) as caught:
        proc.boot_id(tmp_path)
    assert caught.value.path.endswith("random/boot_id")


def _fd(root, pid, number, target, info="pos:\t0\nflags:\t0100002\nmnt_id:\t15\n"):
    folder = root / f"proc/{pid}"
    (folder / "fd").mkdir(parents=True, exist_ok=True)
    (folder / "fdinfo").mkdir(exist_ok=True)
    (folder / "fd" / str(number)).symlink_to(target)
    (folder / "fdinfo" / str(number)).write_text(info)


@pytest.mark.parametrize(
    ("target", "kind", "name"),
    [
        ("socket:[123]", process.FdKind.SOCKET, "socket"),
        ("pipe:[5]", process.FdKind.PIPE, "pipe"),
        ("net:[4026531840]", process.FdKind.NAMESPACE, "net"),
        ("anon_inode:[io_uring]", process.FdKind.ANON_INODE, "io_uring"),
        ("anon_inode:bpf-map", process.FdKind.ANON_INODE, "bpf-map"),
        ("anon_inode:[perf_event]", process.FdKind.ANON_INODE, "perf_event"),
        ("anon_inode:kvm-vcpu:0", process.FdKind.ANON_INODE, "kvm-vcpu:0"),
        ("/memfd:pool (deleted)", process.FdKind.MEMFD, "pool"),
        ("/dev/dri/card9", process.FdKind.DEVICE, "/dev/dri/card9"),
        ("something new", process.FdKind.UNKNOWN, "something new"),
    ],
)
def test_descriptors_are_told_apart_by_their_link(tmp_path, target, kind, name):
    """What readlink shows decides the kind where nothing is in a file system."""
    _fd(tmp_path, 9, 3, target)
    (found,) = process.fds(9, tmp_path)
    assert (found.kind, found.name, found.flags, found.mount_id) == (kind, name, 0o100002, 15)


def test_locks_held_through_a_descriptor_are_counted(tmp_path):
    """fdinfo has a line for each lock."""
    _fd(tmp_path, 9, 3, "pipe:[5]", "flags:\t02\nlock:\t1: FLOCK\nlock:\t2: POSIX\n")
    assert process.fds(9, tmp_path)[0].locks == 2


def test_own_descriptors_are_read_from_the_real_proc(tmp_path):
    """Against the running kernel: a file, a deleted file, a directory, a pipe and /dev/null."""
    kinds = {}
    kept = (tmp_path / "kept").open("w")
    gone = (tmp_path / "gone").open("w")
    (tmp_path / "gone").unlink()
    null, folder, (read, write) = os.open("/dev/null", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY), os.pipe()
    try:
        kinds = {fd.number: fd.kind for fd in process.fds(os.getpid())}
    finally:
        for fd in (null, folder, read, write):
            os.close(fd)
        expected = {
            kept.fileno(): process.FdKind.FILE,
            gone.fileno(): process.FdKind.DELETED,
            null: process.FdKind.DEVICE,
            folder: process.FdKind.DIRECTORY,
            read: process.FdKind.PIPE,
        }
        kept.close()
        gone.close()
    assert expected.items() <= kinds.items()


def test_mappings_tell_devices_from_shared_memory(put, tmp_path):
    """Mapped devices are found; /dev/shm is ordinary memory."""
    put(
        "proc/9/maps",
        "7f00-8f00 rw-s 00001000 00:06 77                         /dev/dri/card0\n"
        "a000-b000 rw-s 00000000 00:1a 5                          /dev/shm/a b (deleted)\n"
        "c000-d000 rw-p 00000000 00:0f 6                          /anon_hugepage (deleted)\n"
        "e000-f000 r-xp 00000000 00:00 0 \n",
    )
    card, shm, huge, bare = process.mappings(9, tmp_path)
    assert (card.is_device, card.size, card.offset) == (True, 0x1000, 0x1000)
    assert (shm.is_device, shm.path, shm.deleted) == (False, "/dev/shm/a b", True)
    assert huge.is_hugetlb
    assert bare.path == ""


def test_memory_falls_back_to_status(put, tmp_path):
    """Without smaps_rollup the shares of pages are unknown, the rest is not."""
    put("proc/9/status", "VmRSS:\t 100 kB\nRssAnon:\t 60 kB\nRssShmem:\t 8 kB\nVmSwap:\t 4 kB\n")
    found = process.memory(9, tmp_path)
    assert (found.rss, found.anonymous, found.pss, found.swap) == (102400, 61440, None, 4096)
    put("proc/9/smaps_rollup", "00-ff ---p 0 00:00 0 [rollup]\nRss: 90 kB\nPss: 50 kB\nAnonymous: 40 kB\n")
    assert process.memory(9, tmp_path).pss == 51200


def test_foreign_namespaces_are_named(tmp_path):
    """Kinds whose inode differs from that of PID 1."""
    for pid, time in ((1, 100), (9, 200)):
        folder = tmp_path / f"proc/{pid}/ns"
        folder.mkdir(parents=True)
        (folder / "time").symlink_to(f"time:[{time}]")
        (folder / "net").symlink_to("net:[7]")
    assert process.foreign_namespaces(9, tmp_path) == ("time",)


def test_free_of_sees_every_pid_in_proc(add, tmp_path):
    """A PID in use is not free."""
    add(40)
    assert proc.free_of([41, 42], tmp_path)
    assert not proc.free_of([39, 40], tmp_path)

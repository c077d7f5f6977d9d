"""/proc: the running kernel and its processes (proc(5) and its pages; Documentation/filesystems/proc.rst).

Processes come and go while /proc is read: one that vanishes is left out, never an error.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import read_text, reported
from kupgrade.model.kernel import CommandLine, KernelRelease

PF_KTHREAD = 0x00200000  # include/linux/sched.h; field 9 of /proc/PID/stat

# Started by our early init in the initrd (host/initramfs.py), cancelled by whoever finds it here.
DEADMAN = "/kupgrade-deadman"

# kernel/panic.c, taint_flags: bit number to letter
TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"

GONE = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Process:
    """One process (thread group).

    `starttime`: clock ticks after boot; with `pid` it names the process for ever. `cgroup`: path in the v2
    hierarchy. `exe`: empty for kernel threads and when unreadable. `uid`: real user ID. `tty`: device number,
    0 for none. `tracer`: PID of the ptrace(2) tracer, 0 for none. `seccomp`: 0 off, 1 strict, 2 filter.
    `namespace_pids`: its PID in each nested PID namespace, outermost first.
    """

    pid: int
    ppid: int
    comm: str
    state: str
    starttime: int
    kernel_thread: bool
    cgroup: str
    exe: str
    uid: int
    nthreads: int
    process_group: int
    session: int
    tty: int
    tracer: int
    seccomp: int
    namespace_pids: tuple[int, ...]


def boot_id(root: Path = Path("/")) -> str:
    """The boot ID: 36 characters, new with every boot, kexec included."""
    return read_text(root / "proc/sys/kernel/random/boot_id").strip()


def release(root: Path = Path("/")) -> KernelRelease:
    """The running kernel's release."""
    return KernelRelease(read_text(root / "proc/sys/kernel/osrelease").strip())


def uptime(root: Path = Path("/")) -> float:
    """Seconds since boot, suspend included (CLOCK_BOOTTIME)."""
    return float(read_text(root / "proc/uptime").split()[0])


def cmdline(root: Path = Path("/")) -> CommandLine:
    """The running kernel's command line."""
    return CommandLine.parse(read_text(root / "proc/cmdline"))


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes, e.g. MemAvailable; the HugePages_* counts stay counts."""
    return sizes(read_text(root / "proc/meminfo"))


def sizes(text: str) -> dict[str, int]:
    """Lines as `Name:   123 kB` in bytes; lines without a number are left out."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def kernel_taint(root: Path = Path("/")) -> tuple[str, ...]:
    """Taint flags as letters (Documentation/admin-guide/tainted-kernels.rst); unnamed bits as bitN."""
    value = int(read_text(root / "proc/sys/kernel/tainted"))
    bits = (bit for bit in range(value.bit_length()) if value >> bit & 1)
    return tuple(TAINT_LETTERS[bit] if bit < len(TAINT_LETTERS) else f"bit{bit}" for bit in bits)


def pid_max(root: Path = Path("/")) -> int:
    """One more than the largest PID the kernel gives out."""
    return int(read_text(root / "proc/sys/kernel/pid_max"))


def pids(root: Path = Path("/")) -> tuple[int, ...]:
    """Every process's PID, sorted."""
    with reported("readdir", root / "proc"):
        names = [entry.name for entry in (root / "proc").iterdir()]
    return tuple(sorted(int(name) for name in names if name.isdecimal()))


def numbers(wanted: Iterable[int], root: Path = Path("/")) -> frozenset[int]:
    """All that a restore of the processes needs free: also those of threads, of process groups and of sessions.

    Threads may be far above their process; the leader of a group or session may have ended long ago.
    """
    found = set(wanted)
    for pid in tuple(found):
        folder = root / "proc" / str(pid) / "task"
        try:
            with reported("readdir", folder):
                found |= {int(entry.name) for entry in folder.iterdir()}
            seen = process(pid, root)
        except KernelError as error:
            if error.errno not in GONE:
                raise
            continue
        found |= {each for each in (seen.process_group, seen.session) if each > 0}
    return frozenset(found)


def free_of(wanted: Iterable[int], root: Path = Path("/")) -> bool:
    """Whether none of the PIDs is in use; threads count too (/proc/TID exists, though unlisted)."""
    return not any((root / "proc" / str(pid)).exists() for pid in wanted)


def _unescaped(text: str) -> str:
    """A path as readlink shows it, without the mark of a deleted file."""
    return text.removesuffix(" (deleted)")


def _exe(folder: Path) -> str:
    try:
        return _unescaped(str((folder / "exe").readlink()))
    except OSError:
        return ""  # a kernel thread, a zombie, or not ours to see


def cgroup_of(text: str) -> str:
    """The v2 path out of /proc/PID/cgroup ("0::/path"); empty when there is none."""
    for line in text.splitlines():
        number, _, path = line.partition("::")
        if number == "0":
            return path
    return ""


def process(pid: int, root: Path = Path("/")) -> Process:
    """One process. Raises KernelError (ENOENT or ESRCH: it is gone)."""
    folder = root / "proc" / str(pid)
    stat, status = read_text(folder / "stat"), read_text(folder / "status")
    # comm may hold blanks and parentheses: it ends at the last one
    comm, _, tail = stat[stat.index("(") + 1 :].rpartition(")")
    fields = tail.split()  # fields[0] is field 3 of proc_pid_stat(5)
    facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return Process(
        pid=pid,
        ppid=int(fields[1]),
        comm=comm,
        state=fields[0],
        starttime=int(fields[19]),
        kernel_thread=bool(int(fields[6]) & PF_KTHREAD),
        cgroup=cgroup_of(read_text(folder / "cgroup")),
        exe=_exe(folder),
        uid=int(facts["Uid"].split()[0]),
        nthreads=int(fields[17]),
        process_group=int(fields[2]),
        session=int(fields[3]),
        tty=int(fields[4]),
        tracer=int(facts.get("TracerPid", "0")),
        seccomp=int(facts.get("Seccomp", "0")),
        namespace_pids=tuple(int(word) for word in facts.get("NSpid", str(pid)).split()),
    )


def processes(root: Path = Path("/")) -> tuple[Process, ...]:
    """Every process, by PID."""
    found = []
    for pid in pids(root):
        try:
            found.append(process(pid, root))
        except KernelError as error:
            if error.errno not in GONE:
                raise
    return tuple(found)


def in_cgroup(everybody: Iterable[Process], cgroup: str) -> tuple[Process, ...]:
    """Those in the cgroup or below it."""
    inside = cgroup.rstrip("/") + "/"
    return tuple(p for p in everybody if (p.cgroup.rstrip("/") + "/").startswith(inside))


def descendants(everybody: Iterable[Process], ancestor: int) -> tuple[Process, ...]:
    """The process `ancestor` and all its descendants, parents before children."""
    children: dict[int, list[Process]] = {}
    found: list[Process] = []
    for each in everybody:
        children.setdefault(each.ppid, []).append(each)
        if each.pid == ancestor:
            found.append(each)
    for each in found:
        found.extend(children.get(each.pid, ()))  # the list grows while it is walked: breadth first
    return tuple(found)


def arguments(pid: int, root: Path = Path("/")) -> tuple[str, ...]:
    """The process's argument vector; empty for kernel threads. Raises KernelError."""
    text = read_text(root / "proc" / str(pid) / "cmdline")
    return tuple(text.removesuffix("\0").split("\0")) if text else ()


def find_deadman(root: Path = Path("/")) -> int | None:
    """The PID of the dead-man that early init started (a shell running DEADMAN, owned by root), or None."""
    for pid in pids(root):
        try:
            if DEADMAN in arguments(pid, root)[:2] and process(pid, root).uid == 0:
                return pid
        except KernelError as error:
            if error.errno not in GONE:
                raise
    return None

"""Builds the initramfs in which a spawned kernel waits: the agent with Python, criu and a few tools of this host.

Not the distribution's initrd of that release: that one looks for a root file system and switches to it, with the
host's keys and hooks. This one mounts nothing of the host's, and everything the blackout needs is in memory already.
Files are taken from the host as they are, so both kernels run the same criu.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host import modules, standby_python
from kupgrade.host.durable import write_durably
from kupgrade.host.filetree import DIRECTORY, FileTree
from kupgrade.host.initramfs import CpioEntry, write_cpio
from kupgrade.model.kernel import KernelRelease

TOOLS = (
    *("mount", "mkdir", "sleep", "cat", "python3", "criu", "modprobe", "insmod", "ip", "nft"),
    *("switch_root", "nsenter"),
)
OPTIONAL_TOOLS = ("umount", "blockdev", "ls", "dmesg")
TOOL_DIRECTORIES = ("usr/sbin", "usr/bin", "sbin", "bin")
# Opened by name at run time, so no ELF file names them: by glibc for ending threads, by kmod for packed modules.
OPENED_LIBRARIES = ("libgcc_s.so.1", "liblzma.so.5", "libzstd.so.1", "libz.so.1")
HOST_FILES = ("etc/ld.so.cache", "etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/protocols")
MERGED = ("bin", "sbin", "lib", "lib64")
SHELL = "bin/sh"  # of the first process
DIRECTORIES = ("dev", "etc", "proc", "run", "sys", "tmp", "mnt", "root", "sysroot", "usr/lib/kupgrade")

MODULES = (
    *("nd_e820", "nd_pmem", "dm_snapshot", "loop", "nf_tables", "nft_compat", "nf_conntrack", "nft_ct"),
    *("unix_diag", "inet_diag", "tcp_diag", "udp_diag", "netlink_diag", "af_packet_diag", "raw_diag"),
    *("tun", "veth"),  # criu asks what the kernel can do by making one
)
KSPAWN = "kspawn"
KSPAWN_PLACE = "usr/lib/kupgrade"

INIT = b"""#!/bin/sh
# kupgrade: the first process of a kernel that waits beside another one. It starts the agent, again if need be.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t devtmpfs -o mode=0755,nosuid dev /dev
# Without a serial port of its own this kernel has no console: what is said goes to its log.
exec < /dev/null > /dev/kmsg 2>&1
mount -t proc -o nosuid,nodev,noexec proc /proc
# Before anything else takes PIDs that the workloads need.
read -r words < /proc/cmdline
for word in $words; do
	case $word in
	kupgrade.pids=*)
		[ "$(cat /proc/sys/kernel/pid_max)" -ge 4194304 ] || echo 4194304 > /proc/sys/kernel/pid_max
		echo "${word#*=}" > /proc/sys/kernel/ns_last_pid
		;;
	esac
done
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=0620,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 /sys/fs/cgroup
ip link set lo up
mkdir -p -m 0700 /run/kupgrade
(
	until python3 -sP -m kupgrade.standby; do
		# Nor when switch_root has emptied this root, and /run is gone from it.
		[ -e /init ] && [ ! -e /run/kupgrade/taken-over ] || exit
		echo "kupgrade: the agent ended, it is started again"
		sleep 1
	done
) &
# Once the workloads run, this process becomes the host's own init.
until [ -e /run/kupgrade/start-system ]; do
	sleep 0.1
done
exec switch_root /sysroot /sbin/init
"""


@dataclass(frozen=True, slots=True)
class Built:
    """A standby initramfs: bytes and digest of the file; `absent`: wanted modules that the release does not have."""

    path: str
    size: int
    sha256: str
    files: int
    absent: tuple[str, ...]


def _nodes() -> Iterator[CpioEntry]:
    """What must be there before devtmpfs is mounted."""
    for name, device in (("console", (5, 1)), ("null", (1, 3)), ("kmsg", (1, 11))):
        yield CpioEntry(f"dev/{name}", stat.S_IFCHR | 0o600, device=device)


def entries(
    release: KernelRelease, extra_modules: Iterable[str] = (), root: Path = Path("/"), kspawn: Path | None = None
) -> tuple[tuple[CpioEntry, ...], tuple[str, ...]]:
    """All files, and the wanted modules that are absent.

    `extra_modules`: of the devices that the kernel will be given. `kspawn`: its module for this release; None: the
    installed one. Raises BadInputError that names everything that is missing at once.
    """
    tree = FileTree(root)
    missing = []
    for name in DIRECTORIES:
        tree.add(CpioEntry(name, DIRECTORY))
    tree.links(*MERGED)
    for node in _nodes():
        tree.add(node)
    tree.add(CpioEntry("init", stat.S_IFREG | 0o755, INIT))
    for tool in (*TOOLS, *OPTIONAL_TOOLS):
        if not any(tree.program(f"{directory}/{tool}") for directory in TOOL_DIRECTORIES) and tool in TOOLS:
            missing.append(tool)
    if not tree.program(SHELL):
        missing.append(f"/{SHELL}")
    for name in OPENED_LIBRARIES:
        if (library := tree.library(name)) is not None:
            tree.program(library)
    for name in HOST_FILES:
        tree.file(name)
    missing += standby_python.add(tree)
    found = modules.closure(release, (*MODULES, *extra_modules), root)
    missing += _add_modules(tree, found, kspawn, release)
    if missing:
        why = f"missing: {', '.join(missing)}"
        raise BadInputError(f"No standby initramfs can be built for {release}", why, "Install what is missing")
    return tree.entries(), found.absent


def _add_modules(tree: FileTree, found: modules.ModuleFiles, kspawn: Path | None, release: KernelRelease) -> list[str]:
    """Modules with modprobe's indexes, and kspawn where the agent looks for it; what is missing."""
    folder = str(found.folder.relative_to(tree.root))
    missing = [f"{folder}/{name}" for name in found.files if tree.file(f"{folder}/{name}") is None]
    for name in modules.INDEXES:
        tree.file(f"{folder}/{name}")
    if kspawn is None:
        own = modules.closure(release, (KSPAWN,), tree.root)
        kspawn = found.folder / own.files[0] if own.files else None
    if kspawn is None:
        return [*missing, f"{KSPAWN}.ko for {release}"]
    try:
        data = kspawn.read_bytes()
    except OSError as error:
        raise BadInputError(f"{kspawn} cannot be read", error.strerror or str(error)) from error
    suffix = kspawn.name.partition(".ko")[2]
    tree.add(CpioEntry(f"{KSPAWN_PLACE}/{KSPAWN}.ko{suffix}", stat.S_IFREG | 0o644, data))
    return missing


def build(
    release: KernelRelease,
    out: Path,
    extra_modules: Iterable[str] = (),
    root: Path = Path("/"),
    kspawn: Path | None = None,
) -> Built:
    """Write `out`, a bare cpio archive; the same files give the same bytes. Arguments and errors as `entries`.

    Not compressed: its pages are copied once and given back, while unpacking would cost the new kernel's start.
    """
    found, absent = entries(release, extra_modules, root, kspawn)
    data = write_cpio(found)
    write_durably(out, data, 0o600)
    return Built(str(out), len(data), hashlib.sha256(data).hexdigest(), len(found), absent)

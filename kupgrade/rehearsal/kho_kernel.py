"""Kernels with Kexec HandOver and the Live Update Orchestrator, which Debian does not configure, out of its sources.

Built in a Debian chroot of the mirror of this machine, so that nothing has to be installed here; cached by content.
Everything is built in: such a kernel has no modules, and its initrd nothing but scripts.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from kupgrade.errors import KupgradeError, UsageError
from kupgrade.host.command import run
from kupgrade.host.image import parse_config
from kupgrade.host.kernels import NEEDS
from kupgrade.rehearsal import packages
from kupgrade.rehearsal.cache import key
from kupgrade.rehearsal.packages import SUITES, KernelPackages, Package, Version
from kupgrade.rehearsal.suites import KEYRING, Archive
from kupgrade.rehearsal.toolbox import Progress, mmdebstrap

NAME = "khokernel"
OLD = f"{NAME}-old"
HELP = (
    f"{NAME}[-PREFIX]: the newest such Debian source, built here with KHO and LUO; {OLD}: the newest of the oldest"
    " series that is older than the first new kernel."
)
FRAGMENT = Path(__file__).parent / "kernel/handover.config"
FIRST = Version("6.19")  # the first one with LUO
# A watchdog that is built in has no modprobe.d; without the last word it would stop at each crossing.
COMMAND_LINE = "kho=on liveupdate=on watchdog.stop_on_reboot=0"
TOOLS_SUITE = "trixie"
TOOLS = ("gcc-14", "make", "binutils", "libc6-dev", "libelf-dev", "flex", "bison", "bc", "lz4", "perl-base")
RECIPE = 1  # raise it when the way a kernel is built changes
# What an x86 kernel is not built from: nearly half of the source.
ARCHITECTURES = (
    *("alpha", "arc", "arm", "arm64", "csky", "hexagon", "loongarch", "m68k", "microblaze", "mips", "nios2"),
    *("openrisc", "parisc", "powerpc", "riscv", "s390", "sh", "sparc", "xtensa"),
)
CODELESS = ("sound", "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/staging", "tools/testing")
EXCLUDED = (
    *(f"linux-source-*/arch/{name}/*.*" for name in ARCHITECTURES),
    *(f"linux-source-*/{directory}/*.[ch]" for directory in CODELESS),
    "linux-source-*/Documentation/*.*",
)
# What the lab itself cannot do without; what kupgrade and criu need stands in host/kernels.py.
REQUIRED = tuple(
    f"CONFIG_{name}"
    for name in (
        *("KEXEC_FILE", "KEXEC_HANDOVER", "KEXEC_HANDOVER_DEBUGFS", "LIVEUPDATE", "LIVEUPDATE_MEMFD", "IKCONFIG_PROC"),
        *("SYSCTL", "SHMEM", "MEMFD_CREATE", "TMPFS_XATTR", "DEVTMPFS_MOUNT", "RD_ZSTD", "SMP", "HOTPLUG_CPU", "NUMA"),
        *("ACPI", "SERIAL_8250_CONSOLE", "VIRTIO_PCI", "VIRTIO_BLK", "VIRTIO_NET", "VIRTIO_CONSOLE", "EXT4_FS"),
        *("HW_RANDOM_VIRTIO", "X86_PMEM_LEGACY", "BLK_DEV_PMEM", "NVDIMM_PFN", "FS_DAX", "I6300ESB_WDT", "VETH"),
        "SECURITY_NETWORK",
        *("FANOTIFY", "AUTOFS_FS", "CGROUP_BPF", "CGROUP_PIDS", "MEMCG", "MEM_SOFT_DIRTY", "TIME_NS", "USERFAULTFD"),
    )
) + tuple(need.option for need in NEEDS if need.required)
FORBIDDEN = ("CONFIG_DEBUG_INFO_BTF", "CONFIG_MODULE_SIG")  # they need tools the chroot does not hold, and minutes
# Words: root of the tools, directory to work in, then the command.
INSIDE = 'mount -t proc proc "$0/proc" && mount --bind "$1" "$0/mnt" && root=$0 && shift && exec chroot "$root" "$@"'
UNPACK = 'dpkg-deb --fsys-tarfile "$0" | tar -xO --wildcards "./usr/src/linux-source-*.tar.xz" | xz -dcT0 | tar -x "$@"'


def is_name(wanted: str) -> bool:
    """Whether `wanted` names a kernel of this kind."""
    return wanted == NAME or wanted.startswith(f"{NAME}-")


def is_source(kernel: KernelPackages) -> bool:
    """Whether this kernel is to be built out of its one package."""
    return kernel.packages[0].name.startswith("linux-source-")


def pair(old: str | None, new: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The kernels of a rehearsal, as --from and --to name them; what is not given goes with what is."""
    chosen = tuple(new) or (NAME if old is not None and is_name(old) else "trixie-backports",)
    return old if old is not None else OLD if is_name(chosen[0]) else "trixie", chosen


def release(version: str) -> str:
    """The release that is built out of a source of this Debian version: 7.3~rc7-1~exp1 makes 7.3.0-rc7-kho."""
    upstream = version.partition(":")[2] or version
    number, _, candidate = upstream.rpartition("-")[0].partition("~")
    number += ".0" * (number.count(".") < 2)
    return f"{number}-{candidate}-kho" if candidate else f"{number}-kho"


def sources(found: Iterable[Package], suite: str) -> list[KernelPackages]:
    """The kernels that can be built out of a suite's packages, oldest first."""
    usable = [
        package
        for package in found
        if re.fullmatch(r"linux-source-\d+\.\d+", package.name) and not Version(package.version) < FIRST
    ]
    built = [KernelPackages(release(package.version), package.version, suite, (package,)) for package in usable]
    return sorted(built, key=lambda kernel: Version(kernel.version))


def choose(wanted: str, candidates: Sequence[KernelPackages], new: KernelPackages | None = None) -> KernelPackages:
    """The source that `wanted` names; `new` is the first kernel to upgrade to, which OLD is older than.

    Raises UsageError when there is none.
    """
    chosen: KernelPackages | None
    ordered = sorted(candidates, key=lambda kernel: Version(kernel.version))
    if wanted == OLD:
        older = [each for each in ordered if new is None or Version(each.version) < Version(new.version)]
        series = older[0].packages[0].name if older else ""
        chosen = next((each for each in reversed(older) if each.packages[0].name == series), None)
    elif wanted == NAME:
        chosen = ordered[-1] if ordered else None
    else:
        chosen = packages.choose(wanted.removeprefix(f"{NAME}-"), ordered)
    if chosen is None:
        known = ", ".join(each.version for each in ordered) or "none"
        raise UsageError(f"no Debian kernel source matches {wanted!r}", f"known from 6.19 on: {known}", HELP)
    return chosen


def find(archive: Archive, wanted: str, new: KernelPackages | None = None) -> KernelPackages:
    """As `choose`, out of all suites."""
    found = [each for suite in SUITES for each in sources(archive.suite(suite).packages("linux-source-"), suite)]
    return choose(wanted, found, new)


def content(kernel: KernelPackages, fragment: Path = FRAGMENT) -> str:
    """The name in the cache of what is built: another for other sources, options or ways to build."""
    digests = [package.digest for package in kernel.packages]
    return key(RECIPE, TOOLS, EXCLUDED, REQUIRED, kernel.release, digests, fragment.read_text())


def missing(config: str) -> list[str]:
    """What stands in a kernel's configuration otherwise than the lab needs it, as lines of such a file."""
    options = parse_config(config)
    lacking = [f"{name}=y" for name in sorted(set(REQUIRED)) if options.get(name) != "y"]
    return lacking + [f"{name}=n" for name in FORBIDDEN if options.get(name, "n") != "n"]


def tools(archive: Archive, progress: Progress) -> Path:
    """A Debian root with compiler and what else Kbuild starts, made once (about 30 s)."""

    def build(place: Path) -> None:
        progress("building the toolbox for kernels")
        line = f"deb [signed-by={KEYRING}] {archive.mirror} {TOOLS_SUITE} main"
        root = place / "root"
        options = ["--variant=minbase", "--include=" + ",".join(TOOLS)]
        run([*mmdebstrap(archive), *options, TOOLS_SUITE, str(root), line], timeout=1800)
        for directory in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / directory, ignore_errors=True)

    return archive.cache.entry("kho-tools", key(TOOLS, TOOLS_SUITE), build) / "root"


def layer(archive: Archive, kernel: KernelPackages, progress: Progress) -> Path:
    """The built kernel as a layer without an initrd: boot/{vmlinuz,config,System.map}-RELEASE, usr/lib/modules/RELEASE.

    Takes minutes the first time; the source is not kept. Raises KupgradeError when an option cannot be had, or with
    the end of what the compiler said.
    """

    def build(place: Path) -> None:
        root = tools(archive, progress)
        progress(f"fetching the source of {kernel.release} ({kernel.packages[0].name} {kernel.version})")
        work = place / "work"
        unpack(archive.fetch(kernel, place / "debs"), work / "linux")
        shutil.rmtree(place / "debs")
        shutil.copyfile(FRAGMENT, work / "fragment")
        _make(root, work, ["KCONFIG_ALLCONFIG=/mnt/fragment", "allnoconfig"])
        lacking = missing((work / "linux/.config").read_text())
        if lacking:
            raise KupgradeError(f"{kernel.release} cannot be configured as needed", ", ".join(lacking))
        progress(f"building {kernel.release}, which takes minutes")
        _make(root, work, ["-s", f"-j{len(os.sched_getaffinity(0))}", "bzImage"])
        arrange(work / "linux", kernel.release, place / "layer")
        shutil.rmtree(work)

    return archive.cache.entry("kho-kernel", content(kernel), build) / "layer"


def unpack(debs: Sequence[Path], into: Path) -> None:
    """What is needed of the tarball in a source package, in the directory `into`."""
    into.mkdir(parents=True)
    words = ["--strip-components=1", "-C", str(into), *(f"--exclude={pattern}" for pattern in EXCLUDED)]
    run(["sh", "-c", UNPACK, str(debs[0]), *words], timeout=900)
    if not (into / "Makefile").is_file():
        raise KupgradeError("a kernel's source cannot be unpacked", str(debs[0].name))


def _make(root: Path, work: Path, words: Sequence[str]) -> None:
    """Run make in the tools' root, where `work` is /mnt; the mounts, and all of its children, end with it."""
    make = ["make", "-C", "/mnt/linux", "ARCH=x86_64", "CC=gcc-14", "HOSTCC=gcc-14", *words]
    same = {"KBUILD_BUILD_USER": "lab", "KBUILD_BUILD_HOST": "lab", "KBUILD_BUILD_TIMESTAMP": "2026-01-01"}
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSIDE, str(root), str(work), *make]
    done = run(command, timeout=7200, check=False, env=same)
    if done.status != 0:
        said = (done.stdout + done.stderr).splitlines()
        raise KupgradeError(f"make {words[-1]} failed in a kernel's source", "\n" + "\n".join(said[-20:]))


def arrange(built: Path, release: str, into: Path) -> None:
    """Lay a built source tree's products out as a Debian host has them, in the new directory `into`.

    Raises KupgradeError when the tree calls itself another release than its package's version says.
    """
    named = (built / "include/config/kernel.release").read_text().strip()
    if named != release:
        raise KupgradeError("the source is not what its package says", f"{named}, not {release}")
    boot, modules = into / "boot", into / "usr/lib/modules" / release
    boot.mkdir(parents=True)
    modules.mkdir(parents=True)
    products = {"vmlinuz": "arch/x86/boot/bzImage", "config": ".config", "System.map": "System.map"}
    for name, product in products.items():
        shutil.copyfile(built / product, boot / f"{name}-{release}")
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        shutil.copyfile(built / name, modules / name)
    (modules / "modules.order").touch()  # there is none

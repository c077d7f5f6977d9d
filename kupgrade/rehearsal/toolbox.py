"""The lab's own tools: a QEMU that does not crash stock kernels, without installing anything on this machine."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import ToolError
from kupgrade.host.command import find, run
from kupgrade.rehearsal.cache import key
from kupgrade.rehearsal.suites import KEYRING, Archive, machine_options

Progress = Callable[[str], None]
PACKAGES = ("qemu-system-x86", "seabios", "e2fsprogs")
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")
OLDEST_QEMU = 10  # 7.2 crashes stock kernels under TCG


@dataclass(frozen=True, slots=True)
class Toolbox:
    """How to start the tools: the words before QEMU's own arguments, and where the toolbox root is (if any)."""

    qemu: tuple[str, ...]
    root: Path | None

    def tool(self, path: str) -> tuple[str, ...]:
        """The words that start the toolbox's program at `path` (relative to its root)."""
        if self.root is None:
            return (path.rsplit("/", 1)[-1],)
        return (*_loader(self.root), str(self.root / path))


def _loader(root: Path) -> tuple[str, ...]:
    """The toolbox's own dynamic loader with its own libraries: its programs run on any host without chroot."""
    libraries = ":".join(str(root / directory) for directory in LIBRARIES)
    return (str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", libraries)


def host_qemu() -> str | None:
    """This machine's own QEMU when it is new enough."""
    path = find("qemu-system-x86_64")
    if path is None:
        return None
    try:
        version = run([path, "--version"]).stdout
    except ToolError:
        return None
    match = re.search(r"version (\d+)", version)
    return path if match and int(match[1]) >= OLDEST_QEMU else None


def mmdebstrap(archive: Archive) -> tuple[str, ...]:
    """The words that start mmdebstrap with this machine's apt options: installed, or out of the Debian package."""
    options = ("--mode=root", *(f"--aptopt={option}" for option in machine_options()))
    installed = find("mmdebstrap")
    if installed:
        return (installed, *options)
    package = next(iter(archive.suite("trixie").packages("mmdebstrap")))

    def build(place: Path) -> None:
        for deb in archive.suite("trixie").download([package], place / "debs"):
            run(["dpkg-deb", "-x", str(deb), str(place)])

    script = archive.cache.entry("mmdebstrap", key(package), build) / "usr/bin/mmdebstrap"
    return ("perl", str(script), *options)


def toolbox(archive: Archive, progress: Progress) -> Toolbox:
    """The tools, built into the cache the first time (about 20 s and 300 MB)."""
    suite = "trixie-backports"
    own = host_qemu()
    if own:
        return Toolbox((own,), None)
    versions = [package for package in archive.suite(suite).packages("qemu-system-x86") if package.name in PACKAGES]

    def build(place: Path) -> None:
        progress("building the toolbox (QEMU)")
        lines = [f"deb [signed-by={KEYRING}] {archive.mirror} {name} main" for name in ("trixie", suite)]
        options = ["--variant=apt", f'--aptopt=APT::Default-Release "{suite}"', "--include=" + ",".join(PACKAGES)]
        root = place / "root"
        run([*mmdebstrap(archive), *options, "trixie", str(root), *lines], timeout=1800)
        shutil.rmtree(root / "var/cache", ignore_errors=True)

    root = archive.cache.entry("toolbox", key(PACKAGES, versions), build) / "root"
    data = ("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios"))
    return Toolbox((*_loader(root), str(root / "usr/bin/qemu-system-x86_64"), *data), root)


def kvm_usable() -> bool:
    """Whether stock kernels run under KVM here: virtualization in hardware, and a virtual machine can be made."""
    if not re.search(r"^flags.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        return False  # a KVM without hardware support emulates too few instructions for a stock kernel
    create_vm = 0xAE01
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(fcntl.ioctl(device, create_vm, 0))
    except OSError:
        return False
    finally:
        os.close(device)
    return True

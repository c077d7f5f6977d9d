"""The kspawn module for the kernels of a virtual host, built in a Debian chroot.

Headers come from the mirror of this machine; chroots and builds are cached by content. What the compiler (W=1), sparse
(C=2, with 6.12) or modpost say beside Kbuild's own progress lines fails the build.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError, UsageError
from kupgrade.host.command import run
from kupgrade.rehearsal.cache import key
from kupgrade.rehearsal.packages import Package, Version
from kupgrade.rehearsal.suites import KEYRING, Archive
from kupgrade.rehearsal.toolbox import mmdebstrap

SOURCE = Path(__file__).parents[1] / "kmod"
SUITES = ("trixie", "trixie-backports")
FLAVOUR = "cloud-amd64"
# Debian builds the kernels of both suites with gcc 14; objtool and the other host programs need the libraries.
TOOLS = ("gcc-14", "make", "binutils", "libc6-dev", "libelf1t64", "libssl3t64", "zlib1g", "sparse", "pahole", "kmod")
TOOLS_FORMAT = 1  # raise it when the way the chroot is made changes
# Lines of a good build; everything else is a complaint. BTF needs a vmlinux, which no headers package holds.
# Its remarks on pahole are of no account therefore.
PROGRESS = re.compile(
    r"\s*(?:$|make -C |make(?:\[\d+\])?: (?:Entering|Leaving) directory|(?:AS|CC|CHECK|LD|BTF|MODPOST)\s"
    r"|Skipping BTF generation for \S+ due to unavailability of vmlinux"
    r"|warning: pahole version differs|The kernel was built with: \d+$|You are using: +\d+$)"
)

# objtool reads /proc/self; the mount ends with the namespace.
INSIDE = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'


@dataclass(frozen=True, slots=True)
class Headers:
    """The packages of one kernel release that a module is built with."""

    release: str
    suite: str
    packages: tuple[Package, ...]


def choose(archive: Archive, wanted: str) -> Headers:
    """The newest release of FLAVOUR whose name starts with `wanted` and whose headers the mirror holds."""
    pattern = re.compile(rf"linux-headers-({re.escape(wanted)}(?![0-9])\S*-{FLAVOUR})")
    found: list[tuple[Version, Headers]] = []
    for suite in SUITES:
        packages = {package.name: package for package in archive.suite(suite).packages("linux-")}
        for name, package in packages.items():
            match = pattern.fullmatch(name)
            if match is None:
                continue
            base = match[1].removesuffix(f"-{FLAVOUR}")
            parts = [name, f"linux-headers-{base}-common", f"linux-kbuild-{base}"]
            if all(part in packages for part in parts):
                headers = Headers(match[1], suite, tuple(packages[part] for part in parts))
                found.append((Version(package.version), headers))
    if not found:
        raise UsageError(f"no headers of a Debian kernel match {wanted!r}", f"looked in {', '.join(SUITES)}")
    return max(found, key=lambda pair: pair[0])[1]


def tools(archive: Archive) -> Path:
    """A Debian root with compiler and checkers, built once."""

    def build(place: Path) -> None:
        lines = [f"deb [signed-by={KEYRING}] {archive.mirror} {SUITES[0]} main"]
        options = ["--variant=minbase", "--include=" + ",".join(TOOLS)]
        root = place / "root"
        run([*mmdebstrap(archive), *options, SUITES[0], str(root), *lines], timeout=1800)
        for directory in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / directory, ignore_errors=True)

    return archive.cache.entry("kbuild-tools", key(TOOLS, TOOLS_FORMAT), build) / "root"


def chroot(archive: Archive, headers: Headers) -> Path:
    """The tools' root with the headers of one kernel unpacked over a copy made of hard links."""
    base = tools(archive)

    def build(place: Path) -> None:
        root = place / "root"
        run(["cp", "-al", str(base), str(root)], timeout=300)
        # Through tar: dpkg-deb -x would replace the links that merge /lib into /usr/lib by directories.
        unpack = 'dpkg-deb --fsys-tarfile "$0" | tar -x --keep-directory-symlink -C "$1"'
        for deb in archive.suite(headers.suite).download(headers.packages, place / "debs"):
            run(["sh", "-c", unpack, str(deb), str(root)], timeout=300)
        shutil.rmtree(place / "debs")

    name = key(base.parent.name, headers.release, [package.digest for package in headers.packages])
    return archive.cache.entry("kbuild", name, build) / "root"


def sparse_works(root: Path) -> bool:
    """Whether sparse can run: later headers lack the script by which Kbuild asks about it, and trixie's is too old.

    (0.6.4 does not know __typeof_unqual__, which headers from 6.16 on use.)
    """
    if not next(root.glob("usr/src/linux-headers-*-common/Makefile")).read_text().count("checker-valid.sh"):
        return True
    return any(root.glob("usr/src/linux-headers-*-common/scripts/checker-valid.sh"))


def module(archive: Archive, headers: Headers, source: Path = SOURCE) -> Path:
    """The built kspawn.ko for one kernel; raises KupgradeError with the complaints when there are any."""
    root = chroot(archive, headers)
    files = {str(path.relative_to(source)): path.read_text() for path in sorted(source.rglob("*")) if path.is_file()}

    def build(place: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="kspawn-", dir=root / "tmp") as directory:
            shutil.copytree(source, directory, dirs_exist_ok=True)
            inside = Path("/", Path(directory).relative_to(root))
            words = ["make", "-C", str(inside), f"KDIR=/lib/modules/{headers.release}/build"]
            words += ["W=1", *(["C=2"] if sparse_works(root) else []), "modules"]
            done = run(["unshare", "--mount", "sh", "-c", INSIDE, str(root), *words], timeout=900, check=False)
            said = (done.stdout + done.stderr).splitlines()
            complaints = [line for line in said if not PROGRESS.match(line)]
            if done.status != 0 or complaints:
                raise KupgradeError(f"kspawn for {headers.release} is not clean", "\n" + "\n".join(complaints or said))
            shutil.copy(Path(directory) / "kspawn.ko", place)

    name = key(root.parent.name, files)
    return archive.cache.entry("kspawn", name, build) / "kspawn.ko"


def for_release(archive: Archive, release: str) -> Path:
    """The built kspawn.ko for exactly this release; raises UsageError when the mirror holds no headers of it."""
    headers = choose(archive, release.removesuffix(f"-{FLAVOUR}"))
    if headers.release != release:
        raise UsageError(f"no headers of {release}", f"the nearest are those of {headers.release}")
    return module(archive, headers)

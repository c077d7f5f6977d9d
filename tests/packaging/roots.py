"""Debian roots to build, install and remove packages in: made once for their list of packages, then only read."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kupgrade.host.command import run
from kupgrade.rehearsal.cache import Cache, key
from kupgrade.rehearsal.suites import KEYRING, Archive, mirror
from kupgrade.rehearsal.toolbox import mmdebstrap

SUITE = "trixie"
TREE = Path(__file__).parents[2]
TOP = ("pyproject.toml", "README.md", "kupgrade", "hooks", "policies", "tests", "packaging", ".ci")
BUILD = (
    *("build-essential", "debhelper", "dh-python", "dh-dkms", "pybuild-plugin-pyproject", "python3-all"),
    *("python3-setuptools", "python3-click", "python3-structlog", "python3-tenacity", "python3-pyelftools"),
    *("python3-msgspec", "lintian", "rpm", "pipx", "python3-pip", "python3-wheel"),
)
# What the package depends on, so that nothing has to be fetched when it is installed; and what builds the module.
HOST = (
    *("systemd", "criu", "python3-pycriu", "python3-click", "python3-structlog", "python3-tenacity"),
    *("python3-pyelftools", "python3-msgspec", "python3-protobuf", "nftables", "iproute2", "kmod", "zstd", "lz4"),
    *("dmsetup", "dkms", "linux-headers-cloud-amd64", "man-db", "bash-completion"),
)
FORMAT = 1  # raise it when the way a root is made changes
# The cached root below, what is written above it; a package's scripts look at /proc. All mounts end with the namespace.
INSIDE = """set -e
mount -t overlay overlay -o "lowerdir=$0,upperdir=$1/written,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t tmpfs tmpfs run
shift
exec chroot . "$@"
"""
ENVIRONMENT = (
    "env",
    "-i",
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
)
# Neither rules of the network nor processes of this machine can be reached from inside.
ALONE = ("unshare", "--mount", "--net", "--ipc", "--pid", "--fork")


@dataclass(frozen=True)
class Root:
    """The root `lower`, to be changed at will: what is written lies in `place`/written."""

    lower: Path
    place: Path

    def run(self, *words: str, check: bool = True, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
        """A command inside, with an environment of its own; fails the test with its output when it fails."""
        argv = [*ALONE, "sh", "-c", INSIDE, str(self.lower), str(self.place), *ENVIRONMENT, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
        said = f"{' '.join(words)}: {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-3000:]}"
        assert not check or done.returncode == 0, said
        return done

    def file(self, name: str) -> Path:
        """A file or directory that was written inside."""
        return self.place / "written" / name


def build_root() -> Path:
    """Where packages are built; not to be changed itself."""
    return _root("deb-build", BUILD)


def host_root() -> Path:
    """A host on which kupgrade was never installed; not to be changed itself."""
    return _root("deb-host", HOST)


def _root(kind: str, packages: tuple[str, ...]) -> Path:
    archive = Archive(Cache.default(), mirror())

    def build(place: Path) -> None:
        lines = [f"deb [signed-by={KEYRING}] {archive.mirror} {SUITE} main"]
        options = ["--variant=minbase", '--aptopt=APT::Install-Recommends "false"', "--include=" + ",".join(packages)]
        root = place / "root"
        run([*mmdebstrap(archive), *options, SUITE, str(root), *lines], timeout=1800)
        for directory in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / directory, ignore_errors=True)
            (root / directory / "partial").mkdir(parents=True)

    return archive.cache.entry(kind, key(packages, FORMAT), build) / "root"


def changeable(lower: Path, place: Path) -> Root:
    """`lower` as a root that can be changed, in the empty directory `place`."""
    for name in ("written", "work", "root"):
        (place / name).mkdir(mode=0o755, parents=True)
    return Root(lower, place)


def built(place: Path) -> Root:
    """A root, changed below the empty directory `place`, with the tree in /src and its packages in /debs."""
    root = changeable(build_root(), place)
    for name in TOP:
        source, target = TREE / name, root.file(f"src/{name}")
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    root.run("sh", "-c", "cd /src && packaging/build-deb /debs")
    return root

"""Debian's suites through a private apt: of this machine's package state only the mirror's address is used."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kupgrade.errors import KupgradeError, UsageError
from kupgrade.host.command import run
from kupgrade.rehearsal.cache import Cache
from kupgrade.rehearsal.packages import SUITES, KernelPackages, Package, choose, kernels, parse_packages

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FRESH_SECONDS = 6 * 3600.0  # an index younger than that is not fetched again


def mirror() -> str:
    """The Debian mirror this machine's own apt uses, as a URL."""
    listed = run(["apt-get", "indextargets", "--format", "$(CREATED_BY) $(REPO_URI) $(ORIGIN) $(SUITE)"], timeout=60)
    found = choose_mirror(listed.stdout)
    if found is None:
        raise KupgradeError(
            "no Debian mirror is known", "apt's sources on this machine name none", "Add one to /etc/apt/sources.list.d"
        )
    return found


def choose_mirror(indextargets: str) -> str | None:
    """The main archive's URL among lines `CREATED_BY URI ORIGIN SUITE` of apt-get indextargets."""
    uris = [line.split()[1] for line in indextargets.splitlines() if line.startswith("Packages ")]
    archives = [uri.rstrip("/") for uri in uris if re.search(r"/debian/?$", uri)]
    return archives[0] if archives else None


def machine_options() -> tuple[str, ...]:
    """This machine's apt options a private apt needs too (proxies, validity of a frozen mirror), as `NAME "VALUE";`."""
    wanted = re.compile(r'^Acquire::(?:Check-Valid-Until|https?::\S*Proxy\S*) "[^"]+";$', re.MULTILINE)
    return tuple(wanted.findall(run(["apt-config", "dump"], timeout=60).stdout))


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite of the mirror with an apt state of its own below `state`."""

    name: str
    state: Path
    mirror: str

    def options(self) -> list[str]:
        """Options that keep apt inside `state`."""
        pairs = {
            "Dir::Etc::sourcelist": self.state / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::Lists": self.state / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self.state / "cache",
            "Acquire::GzipIndexes": "false",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
        }
        return [word for name, value in pairs.items() for word in ("-o", f"{name}={value}")]

    def update(self) -> None:
        """Fetch the suite's index unless a fresh one is here."""
        stamp = self.state / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < FRESH_SECONDS:
            return
        for directory in ("lists/partial", "cache/archives/partial"):
            (self.state / directory).mkdir(parents=True, exist_ok=True)
        line = f"deb [signed-by={KEYRING}] {self.mirror} {self.name} main\n"
        (self.state / "sources.list").write_text(line)
        run(["apt-get", *self.options(), "-qq", "update"], timeout=600)
        stamp.touch()

    def packages(self, prefix: str) -> list[Package]:
        """The packages of the suite whose name starts with `prefix`."""
        self.update()
        texts = [path.read_text() for path in (self.state / "lists").glob("*_Packages")]
        return [package for text in texts for package in parse_packages(text, prefix)]

    def download(self, packages: Sequence[Package], into: Path) -> list[Path]:
        """Fetch these packages' .deb files into the directory `into`."""
        self.update()
        into.mkdir(parents=True, exist_ok=True)
        wanted = [f"{package.name}={package.version}" for package in packages]
        script = 'cd "$0" && exec apt-get "$@"'  # apt-get download writes to the working directory
        run(["sh", "-c", script, str(into), *self.options(), "-qq", "download", *wanted], timeout=1800)
        return sorted(into.glob("*.deb"))


def local_kernel(path: Path) -> KernelPackages:
    """The newest kernel of any flavour in a .deb, or in a directory of them; raises UsageError when there is none."""
    debs = sorted(path.glob("*.deb")) if path.is_dir() else [path]
    found = kernels([_local_package(deb) for deb in debs if deb.is_file()], str(path), flavour="")
    if not found:
        raise UsageError(f"no kernel in {path}", "no linux-image or linux-binary package with its modules is there")
    return found[-1]


def _local_package(deb: Path) -> Package:
    fields = run(["dpkg-deb", "-f", str(deb), "Package", "Version", "Depends"]).stdout
    with deb.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stanza = next(parse_packages(fields))
    return replace(stanza, digest=digest, file=str(deb.resolve()))


@dataclass(frozen=True, slots=True)
class Archive:
    """The mirror with all suites, states kept in the cache."""

    cache: Cache
    mirror: str

    def suite(self, name: str) -> Suite:
        """The suite `name`; nothing is fetched yet."""
        return Suite(name, self.cache.root / "apt" / name, self.mirror)

    def fetch(self, kernel: KernelPackages, into: Path) -> list[Path]:
        """The kernel's .deb files in the directory `into`: local ones copied, the others downloaded."""
        if not kernel.packages[0].file:
            return self.suite(kernel.suite).download(kernel.packages, into)
        into.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(package.file, into)) for package in kernel.packages]

    def kernel(self, wanted: str, flavour: str = "cloud-amd64", suites: Sequence[str] = SUITES) -> KernelPackages:
        """The kernel that `wanted` names: a suite, a release, a package version, a prefix of one, or a path.

        A path is a .deb or a directory of them; a release is looked for in `suites`. Raises UsageError when nothing
        matches.
        """
        if "/" in wanted or wanted.endswith(".deb"):
            return local_kernel(Path(wanted))
        names = [wanted] if wanted in SUITES else list(suites)
        candidates = [
            kernel for name in names for kernel in kernels(self.suite(name).packages("linux-"), name, flavour)
        ]
        chosen = choose(wanted, candidates)
        if chosen is None:
            known = ", ".join(kernel.release for kernel in candidates) or "none"
            raise UsageError(f"no Debian kernel matches {wanted!r}", f"known: {known}", "Name a suite or a release")
        return chosen

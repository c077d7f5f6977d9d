"""Debian package indices as data: versions compared, kernels found. Pure text in, values out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import total_ordering

KERNEL_PACKAGE = re.compile(r"linux-(?P<part>image|binary-unsigned|binary)-(?P<release>\d\S*)")
SUITES = ("trixie", "trixie-backports", "sid", "experimental")  # where kernels are looked for, oldest first


@dataclass(frozen=True, slots=True)
class Package:
    """One stanza of a Packages index; `digest` is its SHA256, `file` where it lies when it is not to be fetched."""

    name: str
    version: str
    digest: str
    depends: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class KernelPackages:
    """The packages of one suite that together hold one kernel release."""

    release: str
    version: str
    suite: str
    packages: tuple[Package, ...]


def parse_packages(text: str, prefix: str = "") -> Iterator[Package]:
    """The stanzas of a Packages index whose package name starts with `prefix`."""
    for stanza in text.split("\n\n"):
        if not stanza.startswith("Package: " + prefix):
            continue
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", stanza, re.MULTILINE))
        yield Package(
            fields["Package"], fields.get("Version", "0"), fields.get("SHA256", ""), fields.get("Depends", "")
        )


def _order(character: str) -> int:
    """Debian policy 5.6.12: `~` before the end, letters before the rest."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256


def _part_key(text: str) -> list[tuple[tuple[int, ...], int]]:
    pairs = re.findall(r"(\D*)(\d*)", text)
    return [((*map(_order, letters), 0), int(digits or 0)) for letters, digits in pairs]


@total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A Debian version, ordered as dpkg orders it."""

    text: str

    def key(self) -> tuple[int, list[tuple[tuple[int, ...], int]], list[tuple[tuple[int, ...], int]]]:
        """Epoch, upstream version and revision as comparable values."""
        epoch, colon, rest = self.text.partition(":")
        if not colon:
            epoch, rest = "0", self.text
        upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
        return int(epoch), _part_key(upstream), _part_key(revision)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.text)

    def __lt__(self, other: Version) -> bool:
        return self.key() < other.key()


def kernels(packages: Iterable[Package], suite: str, flavour: str = "cloud-amd64") -> list[KernelPackages]:
    """Every kernel release of `flavour` (empty: of any) among `packages`, oldest first.

    Up to 6.18 one package (linux-image) holds everything. Later linux-image is an empty shell over linux-binary, or
    linux-binary-unsigned while the signed one is not out yet, with linux-modules and linux-base beside it.
    """
    newest: dict[str, Package] = {}
    for package in packages:
        known = newest.get(package.name)
        if known is None or Version(known.version) < Version(package.version):
            newest[package.name] = package
    releases = {
        match["release"]
        for match in map(KERNEL_PACKAGE.fullmatch, newest)
        if match and (not flavour or match["release"].endswith("-" + flavour))
    }
    releases -= {release for release in releases if release.endswith(("-dbg", "-unsigned"))}
    found = [_kernel(release, suite, newest) for release in releases]
    return sorted((kernel for kernel in found if kernel), key=lambda kernel: Version(kernel.version))


def _kernel(release: str, suite: str, newest: dict[str, Package]) -> KernelPackages | None:
    image = newest.get(f"linux-image-{release}")
    modules = newest.get(f"linux-modules-{release}")
    binary = newest.get(f"linux-binary-{release}") or newest.get(f"linux-binary-unsigned-{release}")
    if binary and modules:
        base = newest.get(f"linux-base-{release}")
        return KernelPackages(
            release, binary.version, suite, tuple(package for package in (binary, modules, base) if package)
        )
    if image and "linux-binary" not in image.depends:
        return KernelPackages(release, image.version, suite, (image,))
    return None


def choose(wanted: str, candidates: Iterable[KernelPackages]) -> KernelPackages | None:
    """The newest candidate in the suite `wanted`, or whose release or package version is or starts with `wanted`.

    A prefix ends at a component: `6.1` is not `6.12`.
    """
    pattern = re.compile(re.escape(wanted) + r"(?![0-9])")
    matching = [
        kernel
        for kernel in candidates
        if kernel.suite == wanted or pattern.match(kernel.release) or pattern.match(kernel.version)
    ]
    return max(matching, key=lambda kernel: Version(kernel.version), default=None)

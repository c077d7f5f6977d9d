"""Errata: known bad combinations as data, and the facts about the platform that they are matched against."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from kupgrade.errors import BadInputError

_TERM = re.compile(r"(<=|>=|<|>|==)\s*([0-9]+(?:\.[0-9]+){0,3})")
_LEADING = re.compile(r"[0-9]+(?:\.[0-9]+){0,3}")
Version = tuple[int, ...]


def version_of(text: str) -> Version | None:
    """The numbers that a release begins with ("6.12.48-rt" is 6.12.48); None when it begins with none."""
    match = _LEADING.match(text)
    return tuple(int(part) for part in match[0].split(".")) if match else None


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Bounds that all hold, e.g. ">=6.16, <7.1"; missing numbers count as 0."""

    text: str
    bounds: tuple[tuple[str, Version], ...]

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """Raises BadInputError."""
        bounds = []
        for word in text.split(","):
            match = _TERM.fullmatch(word.strip())
            if not match:
                raise BadInputError(f"{text!r:.40} is no range of versions", "", 'Write it as ">=6.16, <7.1"')
            bounds.append((match[1], tuple(int(part) for part in match[2].split("."))))
        return cls(text, tuple(bounds))

    def __contains__(self, version: object) -> bool:
        if not isinstance(version, tuple):
            return False
        return all(_holds(operator, _padded(version), _padded(bound)) for operator, bound in self.bounds)


def _padded(version: Version) -> Version:
    return (*version, 0, 0, 0, 0)[:4]


def _holds(operator: str, one: Version, other: Version) -> bool:
    match operator:
        case "<":
            return one < other
        case "<=":
            return one <= other
        case ">":
            return one > other
        case ">=":
            return one >= other
    return one == other


class Severity(enum.Enum):
    """What a match means."""

    REFUSE = "refuse"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions that all have to hold; what is empty or None is none. Of a list one has to be met.

    `either`: the running or the target kernel. `modules`: loaded, or a bound driver. `pci`: globs of VENDOR:DEVICE.
    `descriptors`: kinds of anonymous inodes and protocols of sockets that kept workloads hold. `config`: of the target.
    """

    criu: VersionRange | None = None
    running: VersionRange | None = None
    target: VersionRange | None = None
    either: VersionRange | None = None
    engine: str = ""
    architecture: tuple[str, ...] = ()
    cpu_vendor: tuple[str, ...] = ()
    hypervisor: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    pci: tuple[str, ...] = ()
    cmdline: tuple[str, ...] = ()
    descriptors: tuple[str, ...] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Erratum:
    """One entry. `sources`: addresses of public issues, commits or documents. `place`: the file it stands in."""

    id: str
    severity: Severity
    match: Match
    consequence: str
    remedy: str
    sources: tuple[str, ...]
    place: str = ""


@dataclass(frozen=True, slots=True)
class PlatformFacts:
    """What errata ask of a host besides the other facts; None: it could not be determined.

    `pci`: VENDOR:DEVICE in lower-case hex. `sysctls`: those that some erratum names; a value None: unknown.
    """

    modules: tuple[str, ...] | None = None
    pci: tuple[str, ...] | None = None
    hypervisor: str | None = None  # as systemd-detect-virt --vm says, "none" on bare metal
    cpu_vendor: str | None = None
    sysctls: Mapping[str, str | None] = field(default_factory=dict)

"""Which known problems concern this upgrade: three-valued, for what is unknown is not "no"."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from kupgrade.model.erratum import Erratum, Match, Severity, VersionRange, version_of
from kupgrade.model.facts import Facts
from kupgrade.model.kernel import CommandLine
from kupgrade.model.plan import Refusal
from kupgrade.model.policy import OnUnknown, Policy
from kupgrade.model.target import Target
from kupgrade.model.workload import Fate

# One condition: what it asks for, and whether it is met; None: unknown.
Condition = tuple[str, bool | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """An erratum that applies, or may: `unknown` says what would have to be known. `ignored`: the policy says so."""

    erratum: Erratum
    unknown: tuple[str, ...] = ()
    ignored: bool = False


def findings(facts: Facts, policy: Policy, target: Target | None, engine: str) -> tuple[Finding, ...]:
    """All that apply or may. Without a target those that ask for one are left out: none was named yet."""
    found = []
    for erratum in facts.errata:
        if target is None and _asks_for_target(erratum.match):
            continue
        conditions = tuple(_conditions(erratum.match, facts, policy, target, engine))
        if all(met is not False for _, met in conditions):
            unknown = tuple(what for what, met in conditions if met is None)
            found.append(Finding(erratum, unknown, erratum.id in policy.errata.ignore))
    return tuple(found)


def _asks_for_target(match: Match) -> bool:
    return match.target is not None or bool(match.config)


def _conditions(match: Match, facts: Facts, policy: Policy, target: Target | None, engine: str) -> Iterator[Condition]:
    yield from _versions(match, facts, target)
    if match.engine:
        yield "engine", match.engine == engine
    if match.architecture:
        yield "architecture", facts.architecture in match.architecture
    if match.cmdline:
        line = CommandLine.parse(facts.cmdline)
        yield "command line", any(_has_word(line, word) for word in match.cmdline)
    if match.descriptors:
        yield _descriptors(match, facts, policy)
    yield from _platform(match, facts)
    for option, value in match.config.items():
        known = target is not None and target.config is not None
        yield f"{option} of the new kernel", (target.config.get(option, "n") == value) if known else None  # type: ignore[union-attr]


def _versions(match: Match, facts: Facts, target: Target | None) -> Iterator[Condition]:
    if match.criu is not None:
        yield "criu version", None if facts.criu_version is None else facts.criu_version in match.criu
    running = _in_range(facts.release, match.running or match.either)
    new = None if target is None else _in_range(str(target.image.release), match.target or match.either)
    if match.running is not None:
        yield "running kernel", running
    if match.target is not None:
        yield "new kernel", new
    if match.either is not None:
        running = _in_range(facts.release, match.either)
        new = False if target is None else _in_range(str(target.image.release), match.either)
        yield "kernel releases", True if running or new else None if None in (running, new) else False


def _in_range(release: str, wanted: VersionRange | None) -> bool | None:
    version = version_of(release)
    return None if wanted is None or version is None else version in wanted


def _has_word(line: CommandLine, word: str) -> bool:
    name, equals, value = word.partition("=")
    return line.get(name) == value if equals else line.has(name)


def _descriptors(match: Match, facts: Facts, policy: Policy) -> Condition:
    wanted = {word.lower() for word in match.descriptors}
    kept = {entry.name for entry in policy.workloads if entry.fate is Fate.KEEP}
    for workload in facts.workloads:
        for process in workload.processes if workload.name in kept else ():
            if any({fd.name.lower(), fd.protocol.lower()} & wanted for fd in process.descriptors):
                return "open files", True
    unseen = any(f"workload {name}" in facts.unknown for name in kept)
    return "open files of a workload", None if unseen else False


def _platform(match: Match, facts: Facts) -> Iterator[Condition]:
    known = facts.platform
    if match.modules:
        wanted = tuple(name.replace("-", "_") for name in match.modules)  # the kernel takes both as equal
        yield "modules", _any(wanted, None if known is None else known.modules)
    if match.pci:
        ids = None if known is None else known.pci
        found = None if ids is None else any(fnmatch.filter(ids, glob.lower()) for glob in match.pci)
        yield "PCI devices", found
    if match.hypervisor:
        yield "hypervisor", _any(match.hypervisor, _single(None if known is None else known.hypervisor))
    if match.cpu_vendor:
        yield "CPU vendor", _any(match.cpu_vendor, _single(None if known is None else known.cpu_vendor))
    for name, value in match.sysctl.items():
        read = None if known is None else known.sysctls.get(name)
        yield name, None if read is None else read == value


def _single(value: str | None) -> tuple[str, ...] | None:
    return None if value is None else (value,)


def _any(wanted: tuple[str, ...], found: tuple[str, ...] | None) -> bool | None:
    return None if found is None else bool(set(wanted) & set(found))


def errata_refusals(facts: Facts, policy: Policy, target: Target | None, engine: str) -> tuple[Refusal, ...]:
    """Those that forbid the upgrade and are not ignored, for certain or where the policy refuses what is unknown."""
    return tuple(
        Refusal(
            f"no known problem stands in the way ({each.erratum.id})",
            f"{_unknown(each)}{each.erratum.consequence} ({', '.join(each.erratum.sources)})",
            f"{each.erratum.remedy}, or ignore it by [errata] ignore",
        )
        for each in findings(facts, policy, target, engine)
        if each.erratum.severity is Severity.REFUSE
        and not each.ignored
        and (not each.unknown or policy.on_unknown is OnUnknown.REFUSE)
    )


def errata_warnings(facts: Facts, policy: Policy, target: Target | None, engine: str) -> tuple[str, ...]:
    """Those that only warn, that may apply, or that the policy ignores."""
    return tuple(
        finding_text(each)
        for each in findings(facts, policy, target, engine)
        if each.ignored or each.unknown or each.erratum.severity is Severity.WARN
    )


def finding_text(found: Finding) -> str:
    """One line."""
    erratum = found.erratum
    about = f"{erratum.consequence} ({', '.join(erratum.sources)})"
    if found.ignored:
        return f"known problem {erratum.id}, ignored by the policy: {about}"
    if found.unknown:
        return f"it is unknown whether the known problem {erratum.id} applies ({', '.join(found.unknown)}): {about}"
    return f"known problem {erratum.id}: {about}. {erratum.remedy}"


def _unknown(found: Finding) -> str:
    return f"it is unknown whether this applies ({', '.join(found.unknown)}): " if found.unknown else ""

"""Which of several requested kernels is taken, and when after a failure: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kupgrade.core.chronicle import HistoryEntry
from kupgrade.model.automation import Withdrawn
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.policy import KernelRules

BACK_OFF = 3600.0  # seconds after a first failure; twice as long after each further one
LONGEST_BACK_OFF = 86400.0


@dataclass(frozen=True, slots=True)
class Host:
    """What a choice rests on. `installed`: release -> whether it has an initrd, too; `rejected`: with the reason."""

    running: str
    installed: Mapping[str, bool]
    rules: KernelRules
    rejected: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Choice:
    """`release`: the kernel to go to, "" for none; `unready`: why it cannot be gone to yet."""

    release: str = ""
    unready: str = ""
    withdrawn: tuple[Withdrawn, ...] = ()


def choose(releases: Iterable[str], host: Host) -> Choice:
    """The newest request that is installed, allowed, newer than what runs and did not come back; the others go.

    Of the running kernel's flavour, if there is one.
    """
    able: list[KernelRelease] = []
    withdrawn: list[Withdrawn] = []
    for release in sorted(map(KernelRelease, releases)):
        if why := _against(release, host):
            withdrawn.append(Withdrawn(release.text, why))
        else:
            able.append(release)
    if not able:
        return Choice(withdrawn=tuple(withdrawn))
    flavour = KernelRelease(host.running).flavour
    newest = ([each for each in able if each.flavour == flavour] or able)[-1]
    for each in able:
        if each != newest:
            why = "is newer" if each < newest else f"is of the flavour that runs ({' '.join(flavour)})"
            withdrawn.append(Withdrawn(each.text, f"{newest} {why}"))
    unready = "" if host.installed[newest.text] else f"{newest} has no initrd yet"
    return Choice(newest.text, unready, tuple(withdrawn))


def _against(release: KernelRelease, host: Host) -> str:
    text, running = release.text, KernelRelease(host.running)
    if release == running:
        return "it runs"
    if release < running:
        return f"{running} runs, which is newer"
    if text not in host.installed:
        return "it is not installed (any more)"
    if not host.rules.permits(text):
        return "the policy does not allow it ([kernels])"
    if text in host.rejected:
        return f"it was rolled back before ({host.rejected[text]}); by hand: kupgrade apply --retry-failed"
    return ""


def back_off(history: Sequence[HistoryEntry], release: str) -> float | None:
    """Until when (seconds since the epoch) `release` is left alone after failures; None: nothing speaks against it.

    Counted are its upgrades since the last that committed of which a step failed, or which a person took back. None of
    them crossed, or it would be rejected.
    """
    failures, last = 0, 0.0
    for entry in reversed([each for each in history if each.new_release == release]):
        if entry.outcome == "committed":
            break
        if entry.outcome != "rolled-back" or not entry.setback:
            continue  # what was prepared and put away again says nothing
        failures += 1
        last = max(last, entry.finished or entry.started)
    if not failures:
        return None
    return last + min(BACK_OFF * 2.0 ** min(failures - 1, 10), LONGEST_BACK_OFF)

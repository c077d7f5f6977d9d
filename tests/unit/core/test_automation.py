"""Which kernel is taken, and how long a failed one is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.core.automation import BACK_OFF, LONGEST_BACK_OFF, Host, back_off, choose
from kupgrade.core.chronicle import HistoryEntry
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.policy import KernelRules

RUNNING = "6.12.48"


def host(
    *installed: str, block: tuple[str, ...] = (), rejected: dict[str, str] | None = None, bare: tuple[str, ...] = ()
) -> Host:
    return Host(RUNNING, {each: each not in bare for each in installed}, KernelRules(block=block), rejected or {})


CASES = {
    "nothing asked": ((), host(), "", {}),
    "one": (("6.12.57",), host("6.12.57"), "6.12.57", {}),
    "the newest, not the last name": (
        ("6.12.100", "6.12.57", "6.12.9"), host("6.12.57", "6.12.100"), "6.12.100",
        {"6.12.57": "6.12.100 is newer", "6.12.9": "6.12.48 runs"},
    ),
    "another flavour is not preferred": (
        ("6.12.57", "6.12.60-rt"), host("6.12.57", "6.12.60-rt"), "6.12.57",
        {"6.12.60-rt": "6.12.57 is of the flavour that runs"},
    ),
    "another flavour alone": (("6.12.60-rt",), host("6.12.60-rt"), "6.12.60-rt", {}),
    "it runs": ((RUNNING,), host(RUNNING), "", {RUNNING: "it runs"}),
    "an older one": (("6.12.40",), host("6.12.40"), "", {"6.12.40": "6.12.48 runs, which is newer"}),
    "removed meanwhile": (("6.12.57",), host(), "", {"6.12.57": "not installed"}),
    "blocked": (
        ("6.13.0-rc1", "6.12.57"), host("6.13.0-rc1", "6.12.57", block=("*-rc*",)), "6.12.57",
        {"6.13.0-rc1": "does not allow"},
    ),
    "rolled back before": (
        ("6.12.57", "6.12.60"), host("6.12.57", "6.12.60", rejected={"6.12.60": "it panicked"}), "6.12.57",
        {"6.12.60": "it panicked"},
    ),
    "all of them refused": (
        ("6.12.57",), host("6.12.57", rejected={"6.12.57": "it panicked"}), "", {"6.12.57": "--retry-failed"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_newest_that_may_be_taken_is(name: str) -> None:
    """Installed, allowed, newer than what runs, not rejected; every other request goes, with the reason."""
    asked, here, taken, gone = CASES[name]
    found = choose(asked, here)
    assert found.release == taken
    assert {each.release for each in found.withdrawn} == set(gone)
    for each in found.withdrawn:
        assert gone[each.release] in each.why


def test_a_kernel_without_an_initrd_waits() -> None:
    """It stays the one to be taken, and the reason is told; older ones are not taken in its place."""
    found = choose(("6.12.57", "6.12.60"), host("6.12.57", "6.12.60", bare=("6.12.60",)))
    assert (found.release, found.unready) == ("6.12.60", "6.12.60 has no initrd yet")


RELEASES = st.builds("6.{}.{}".format, st.integers(11, 13), st.integers(0, 99))


@given(st.sets(RELEASES, max_size=6), st.sets(RELEASES, max_size=6), st.sets(RELEASES, max_size=3))
def test_every_request_is_taken_or_withdrawn(asked: set[str], installed: set[str], rejected: set[str]) -> None:
    """None is lost, none counts twice, and nothing old, absent or rejected is ever taken."""
    found = choose(asked, host(*installed, rejected=dict.fromkeys(rejected, "bad")))
    gone = [each.release for each in found.withdrawn]
    assert sorted([*gone, *([found.release] if found.release else [])]) == sorted(asked)
    if found.release:
        assert found.release in installed - rejected and KernelRelease(found.release) > KernelRelease(RUNNING)
        able = [each for each in asked & installed - rejected if KernelRelease(each) > KernelRelease(RUNNING)]
        assert found.release == str(max(map(KernelRelease, able)))


def past(*outcomes: str, release: str = "6.12.57", setback: bool = True) -> list[HistoryEntry]:
    return [
        HistoryEntry(
            f"u{n}", outcome, new_release=release, started=1000.0 * n, finished=1000.0 * n + 500, setback=setback
        )
        for n, outcome in enumerate(outcomes, 1)
    ]


@pytest.mark.parametrize(
    ("history", "until"),
    [
        ([], None),
        (past("committed"), None),
        (past("rolled-back", "committed"), None),
        (past("rolled-back", release="6.12.60"), None),
        (past("rolled-back"), 1500 + BACK_OFF),
        (past("rolled-back", "rolled-back", "rolled-back"), 3500 + 4 * BACK_OFF),
        (past(*["rolled-back"] * 30), 30500 + LONGEST_BACK_OFF),
        (past("rolled-back", "abandoned"), 1500 + BACK_OFF),
        (past("rolled-back", setback=False), None),
        (past("committed", "rolled-back", "committed"), None),
    ],
)
def test_failures_back_off(history: list[HistoryEntry], until: float | None) -> None:
    """After each failure in a row it is left alone for twice as long, at most for a day."""
    assert back_off(history, "6.12.57") == until

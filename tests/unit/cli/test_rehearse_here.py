"""`kupgrade rehearse --this-host`: what is asked of the host, and the exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import ExitCode
from kupgrade.model.plan import Refusal
from kupgrade.rehearsal import forecast

from .conftest import Host


def told(outcome: str) -> dict[str, Any]:
    return {**forecast.refused({"what": "x"}), "outcome": outcome}


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("committed", 0), ("failed", 1), ("refused", 3), ("rolled-back", 4), ("hands-off", 5), ("nothing-to-do", 0)],
)
def test_the_exit_code_is_what_would_happen_here(host: Host, tmp_path: Path, outcome: str, code: int) -> None:
    """The plan of this host goes into the copy; its outcome is the verb's."""
    wishes: list[Any] = []

    def rehearse(wish: Any, progress: Any) -> dict[str, Any]:
        wishes.append(wish)
        progress("copying")
        return told(outcome)

    host.change(rehearse_here=rehearse)
    words = ("--kernel", "7.3.4", "--leave-out", "/srv", "--scratch", str(tmp_path), "--guest-memory", "1024")
    lines, found = host.lines("rehearse", "--this-host", *words, "--timeout", "9")
    assert (found, lines[0]["outcome"]) == (code, outcome)
    (wish,) = wishes
    assert (wish.plan, wish.kernel, wish.memory, wish.timeout) == (host.plan, "7.3.4", 1024, 9.0)
    assert (wish.leave_out, wish.scratch) == (("/srv",), tmp_path)
    assert host.calls[0]["engine"] == "auto"


def test_a_prediction_over_a_limit_is_a_no_whatever_the_copy_does(host: Host) -> None:
    """`kupgrade apply` would not begin it here."""
    host.change(rehearse_here=lambda wish, progress: {**told("committed"), "predicted": {"outcome": "over-budget"}})
    assert host.call("rehearse", "--this-host").exit_code == ExitCode.OVER_BUDGET


def test_a_plan_that_is_refused_here_starts_no_machine(host: Host) -> None:
    """Its refusals are told, with the exit code of a refusal."""
    host.refusals = (Refusal("criu can dump", "a raw socket", "stop it"),)
    host.change(rehearse_here=None)
    found = host.call("rehearse", "--this-host", "--engine", "kexec")
    assert found.exit_code == ExitCode.REFUSED
    assert "a raw socket" in found.stdout
    assert host.calls[0]["engine"] == "kexec"


@pytest.mark.parametrize(
    "words",
    [
        ("--this-host", "--from", "trixie"),
        ("--this-host", "--cycles", "2"),
        ("--this-host", "--leave-out", "srv"),
        ("--this-host", "--leave-out", "/"),
        ("--kernel", "7.3.4"),
        ("--scratch", "/"),
        ("--live-images",),
    ],
)
def test_options_of_the_other_rehearsal_are_refused(host: Host, words: tuple[str, ...]) -> None:
    """A virtual host's options say nothing about this one, nor these about a virtual host."""
    host.change(rehearse_here=None)
    assert host.call("rehearse", *words).exit_code == ExitCode.USAGE


def test_what_runs_here_is_dumped_only_when_it_is_asked_for(host: Host) -> None:
    """It stands still for that."""
    wishes: list[Any] = []

    def rehearse(wish: Any, progress: Any) -> dict[str, Any]:
        wishes.append(wish)
        return told("rolled-back")

    host.change(rehearse_here=rehearse)
    assert host.call("rehearse", "--this-host").exit_code == ExitCode.ROLLED_BACK
    assert host.call("rehearse", "--this-host", "--live-images").exit_code == ExitCode.ROLLED_BACK
    assert [wish.live for wish in wishes] == [False, True]


def test_nothing_is_dumped_while_an_upgrade_is_open(host: Host) -> None:
    """Not even looked at."""
    host.open()
    host.change(rehearse_here=None)
    assert host.call("rehearse", "--this-host", "--live-images").exit_code == ExitCode.NOT_NOW


def test_it_takes_root(host: Host) -> None:
    """Whoever may not read all of this host cannot copy it."""
    host.change(euid=lambda: 1000, rehearse_here=None)
    assert host.call("rehearse", "--this-host").exit_code == ExitCode.REFUSED


@pytest.mark.parametrize("named", ["linked", "kept//below", "kept/../kept/below", "kept/below/"])
def test_a_directory_is_left_out_by_whatever_name_it_is_given(host: Host, tmp_path: Path, named: str) -> None:
    """A copy that held what is told to be missing would hold what its owner did not want to see copied."""
    (tmp_path / "kept/below").mkdir(parents=True)
    (tmp_path / "linked").symlink_to("kept/below")
    wishes: list[Any] = []

    def rehearse(wish: Any, progress: Any) -> dict[str, Any]:
        wishes.append(wish)
        return told("committed")

    host.change(rehearse_here=rehearse)
    host.call("rehearse", "--this-host", "--leave-out", f"{tmp_path}/{named}")
    assert wishes[0].leave_out == (str((tmp_path / "kept/below").resolve()),)


def test_the_root_by_another_name_cannot_be_left_out(host: Host, tmp_path: Path) -> None:
    """Nothing would be left."""
    (tmp_path / "linked").symlink_to("/")
    host.change(rehearse_here=None)
    for name in (f"{tmp_path}/linked", "/srv/.."):
        assert host.call("rehearse", "--this-host", "--leave-out", name).exit_code == ExitCode.USAGE

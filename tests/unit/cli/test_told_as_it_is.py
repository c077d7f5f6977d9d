"""What a verb says of itself is what it did: dry runs, JSON on every way out, paths that others can follow."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.model.record import RecordKind
from tests.unit.cli.conftest import HANDS_OFF
from tests.unit.cli.test_instance import START, Machine, machine

__all__ = ["machine"]

BEGUN = (RecordKind.STARTED, 0, {})


def test_a_dry_run_of_a_command_in_an_instance_is_json(host: Any, machine: Machine) -> None:
    """Under --json nothing but JSON is on stdout."""
    assert host.call(*START, "--yes").exit_code == 0
    (found,), code = host.lines("instance", "console", "rt", "--run", "nproc", "-n")
    assert (code, found["outcome"], found["instance"]) == (0, "dry-run", "rt")


def test_abandoning_in_a_dry_run_says_that_nothing_was_closed(host: Any) -> None:
    """A script that reads `outcome` must not take it for done."""
    host.open(BEGUN, *HANDS_OFF)
    (found,), code = host.lines("rollback", "--abandon", "-n")
    assert (code, found["outcome"]) == (0, "dry-run")
    assert host.composed.state.current_id() is not None


def test_abandoning_an_instance_in_a_dry_run_says_so(host: Any, machine: Machine) -> None:
    """As text, and as JSON."""
    assert host.call(*START, "--yes").exit_code == 0

    def refuse(label: str) -> None:
        if label.startswith("online block"):
            raise KupgradeError("EBUSY")

    machine.beside.tick = refuse
    assert host.call("instance", "stop", "rt").exit_code == 5
    assert "Would close" in host.call("instance", "stop", "rt", "--abandon", "-n").output
    (found,), code = host.lines("instance", "stop", "rt", "--abandon", "-n")
    assert (code, found["outcome"]) == (0, "dry-run")
    assert host.composed.state.open_instances() == ("rt",)


def test_an_interrupted_rollback_ends_with_its_result(host: Any) -> None:
    """As an interrupted apply does: the last line says how it was left."""
    host.open(BEGUN)
    host.events = ()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    host.change(sleep=interrupt)
    lines, code = host.lines("rollback")
    assert (code, lines[-1]["outcome"], lines[-1]["exit"]) == (130, "interrupted", 130)


def test_an_initrd_by_a_relative_path_is_found_by_the_keeper(
    host: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The keeper is a service, whose working directory is /."""
    monkeypatch.chdir(tmp_path)
    assert host.call(*START, "--initrd", "own.img", "--yes").exit_code == 0
    assert machine.wishes[0].initrd == f"{tmp_path}/own.img"


@pytest.mark.parametrize("cpus", ["", " ", "(null)", "9" * 5000])
def test_no_cpu_at_all_is_a_usage_error(host: Any, machine: Machine, cpus: str) -> None:
    """An empty list is not a wish for the default."""
    (error,), code = host.lines(*START, "--cpus", cpus)
    assert (code, error["code"]) == (2, 2)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_rehearsal_ends_some_time(host: Any, value: str) -> None:
    """No number compares with NaN: the rehearsal would never be over."""
    (error,), code = host.lines("rehearse", "--fault", "no-such-fault", "--timeout", value)
    assert code == 2
    assert "timeout" in error["what"]


def test_a_report_that_cannot_be_written_is_told_before_the_rehearsal(host: Any, tmp_path: Path) -> None:
    """Not after the minutes it takes, and instead of its result."""
    (error,), code = host.lines("rehearse", "--fault", "no-such-fault", "--report", f"{tmp_path}/nowhere/report.html")
    assert code == 2
    assert "report.html" in error["what"]


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_plan_never_takes_the_place_of_a_device(host: Any, tmp_path: Path, kind: str) -> None:
    """A plan is renamed into place: root's `--out /dev/null` would make that a regular file for all the system."""
    out = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(out)
    else:
        os.mknod(out, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    before = out.lstat()
    (error,), code = host.lines("plan", "--out", str(out))
    assert (code, error["code"]) == (2, 2)
    assert out.lstat() == before


@pytest.mark.parametrize("option", ["--from", "--to", "--fault"])
def test_the_option_that_does_not_fit_is_called_as_it_was_given(host: Any, option: str) -> None:
    """And not by the name that the program has for it."""
    (error,), code = host.lines("rehearse", "--this-host", option, "x")
    assert code == 2
    assert error["what"].startswith(f"{option} cannot be used")

"""`kupgrade rehearse`: what is refused before anything is built, and the exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from kupgrade.cli.main import VERBS, cli
from kupgrade.errors import ExitCode
from kupgrade.rehearsal import report, scenario
from kupgrade.rehearsal.options import Options
from kupgrade.rehearsal.scenario import Result

from .conftest import Host


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The rehearsals that were begun; each commits."""
    begun: list[Options] = []

    def rehearse(options: Options, progress: Any) -> Result:
        begun.append(options)
        return Result({"outcome": "committed", **({"not_made": ["let through"]} if options.cycles else {})}, (), ())

    monkeypatch.setattr(scenario, "rehearse", rehearse)
    monkeypatch.setattr(report, "text", lambda result: "the text")
    monkeypatch.setattr(report, "html", lambda result: "the page")
    return begun


def test_what_was_asked_for_and_not_made_is_a_failure(host: Host, made: list[Options]) -> None:
    """However well the last upgrade ended."""
    assert host.call("rehearse").exit_code == ExitCode.DONE
    assert host.call("rehearse", "--cycles", "2", "--rollback", "gate").exit_code == ExitCode.FAILED
    assert [each.cycles for each in made] == [0, 2]


@pytest.mark.parametrize(
    "words",
    [
        ("--cycles", "2"),
        ("--engine", "spawn", "--store", "disk"),
        ("--fault", "kill-page-server@thaw"),
        ("--fault", "kill-page-ring@thaw", "--engine", "spawn"),
        ("--fault", "holder-dies", "--store", "pmem"),
        ("--fault", "memory-not-taken", "--store", "disk"),
    ],
)
def test_what_would_never_happen_is_refused_before_it_is_tried(
    host: Host, made: list[Options], words: tuple[str, ...]
) -> None:
    """A step, a store or a fault that this rehearsal has not would be skipped, and seem to be gone through."""
    assert host.call("rehearse", *words).exit_code == ExitCode.USAGE
    assert made == []


@pytest.mark.parametrize(
    "words",
    [
        ("--cycles", "2", "--engine", "spawn"),
        ("--fault", "kill-page-server@thaw", "--memory-mode", "in-place"),
        ("--fault", "holder-dies"),
        ("--fault", "holder-dies", "--store", "luo"),
    ],
)
def test_what_can_happen_is_tried(host: Host, made: list[Options], words: tuple[str, ...]) -> None:
    """Nothing more is refused than that."""
    host.call("rehearse", *words)
    assert len(made) == 1


@pytest.mark.parametrize("option", ["--keep", "--report"])
def test_a_place_that_cannot_be_written_is_told_first(
    host: Host, made: list[Options], tmp_path: Path, option: str
) -> None:
    """Not after the minutes whose result it was to hold."""
    (tmp_path / "file").touch()
    found = host.call("rehearse", option, str(tmp_path / "file/below"))
    assert (found.exit_code, made) == (ExitCode.USAGE, [])
    assert str(tmp_path) in found.stderr


def test_it_takes_root(host: Host, made: list[Options]) -> None:
    """A network of its own and images of a root file system are root's to make."""
    host.change(euid=lambda: 1000)
    assert host.call("rehearse").exit_code == ExitCode.REFUSED
    assert made == []


@pytest.mark.parametrize("option", ["--keep", "--report"])
def test_a_result_is_told_before_it_is_stored(
    host: Host, made: list[Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """A disk that is full by then costs the files, and not the result."""

    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scenario, "write_evidence", full)
    monkeypatch.setattr(report, "html", full)
    found = host.call("rehearse", option, str(tmp_path / "there"))
    assert found.exit_code == ExitCode.FAILED
    assert "the text" in found.stdout and '"committed"' in found.stdout


def test_the_readme_names_the_verbs_that_know_no_dry_run() -> None:
    """Whoever relies on -n has to know where there is none."""
    context = click.Context(cli)
    commands = [each for verb in VERBS if (each := cli.get_command(context, verb)) is not None]
    leaves = [
        leaf for each in commands for leaf in (each.commands.values() if isinstance(each, click.Group) else [each])
    ]
    without = [leaf.name for leaf in leaves if not leaf.hidden and "dry_run" not in {each.name for each in leaf.params}]
    text = (Path(__file__).parents[3] / "README.md").read_text()
    assert without == ["rehearse"] and "Every verb but `rehearse` knows `-n`" in text

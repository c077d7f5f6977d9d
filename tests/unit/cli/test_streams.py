"""Streams that are closed, full or of another character set: each verb says what it can, and never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from kupgrade.cli.composition import Composition
from kupgrade.cli.main import cli
from kupgrade.model.record import RecordKind
from tests.unit.cli.conftest import COMMITTED, ROLLED_BACK, Event
from tests.unit.cli.test_instance import START, Machine, machine

__all__ = ["machine"]


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_closed_stream_is_no_terminal(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    """Daemons start programs with closed streams (<&-): Python has None there, and nobody can be asked.

    A rollback looks for a terminal when its wish is recorded, and before the worker is started.
    """
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, None if name == stream else SimpleNamespace(isatty=lambda: True))
    assert Composition().terminal() is False


@pytest.mark.parametrize("words", [["nonsense", "--json"], ["--help"], ["nonsense"]])
def test_a_full_disk_behind_stdout_is_told_on_stderr(words: list[str]) -> None:
    """What was to be said cannot be; that it could not is, in one line."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kupgrade.cli.main", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
            check=False,
        )
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2)
    assert "No space left" in done.stderr or words == ["nonsense"]


@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
def test_a_name_that_the_terminal_cannot_show_is_escaped(host: Any, charset: str) -> None:
    """File names are bytes; a strict stdout would end the verb in the middle of its answer."""
    folder = host.root / "etc/kupgrade/policy.d"
    folder.mkdir(parents=True, mode=0o755)
    for name in (b"\xff.toml", "Ω.toml".encode()):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.touch(0o644)
    result = CliRunner(charset=charset).invoke(cli, ["policy", "check"], obj=host.composed)
    assert result.exit_code == 0, result.stderr
    assert "2 files" in result.stdout


def _reader_that_goes_away(monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    """As behind a pipe into head(1): so many lines are taken, then writing fails."""
    taken: list[object] = []

    def emit(value: object) -> None:
        taken.append(value)
        if len(taken) > lines:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    for module in ("follow", "apply", "rollback", "instance_call", "instance_start"):
        monkeypatch.setattr(f"kupgrade.cli.{module}.emit", emit)
    for module in ("apply", "rollback", "instance_start", "instance_stop"):
        monkeypatch.setattr(f"kupgrade.cli.{module}.unheard", lambda: None)  # the runner's stdout has no descriptor


@pytest.mark.parametrize(("lines", "events", "code"), [(1, (), 130), (4, COMMITTED, 0), (2, ROLLED_BACK, 4)])
def test_an_upgrade_whose_output_nobody_reads_is_not_a_failure(
    host: Any, monkeypatch: pytest.MonkeyPatch, lines: int, events: tuple[Event, ...], code: int
) -> None:
    """Exit code 1 says that the old kernel is untouched: the worker goes on (130), or it has ended as it has."""
    host.events = events or ((RecordKind.STARTED, 0, {}),)
    _reader_that_goes_away(monkeypatch, lines)
    assert host.call("apply", "--yes", "--json").exit_code == code


@pytest.mark.parametrize(("lines", "events", "code"), [(1, (), 130), (2, ROLLED_BACK, 0)])
def test_a_rollback_whose_output_nobody_reads_is_not_a_failure(
    host: Any, monkeypatch: pytest.MonkeyPatch, lines: int, events: tuple[Event, ...], code: int
) -> None:
    """It was asked for, and goes on."""
    host.open((RecordKind.STARTED, 0, {}))
    host.events = events
    _reader_that_goes_away(monkeypatch, lines)
    assert host.call("rollback", "--json").exit_code == code


def test_an_instance_whose_start_nobody_reads_is_not_a_failure(
    host: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs: 1 would say that it was taken back. Its stop is the same."""
    _reader_that_goes_away(monkeypatch, 2)
    assert host.call(*START, "--json").exit_code == 130
    assert host.composed.state.open_instances() == ("rt",)
    _reader_that_goes_away(monkeypatch, 1)
    assert host.call("instance", "stop", "rt", "--json").exit_code == 130
    assert host.composed.state.open_instances() == ()


def test_a_reader_that_went_away_makes_no_noise_at_the_exit() -> None:
    """What is still to be written is thrown away: Python would complain of it when it ends."""
    code = (
        "import sys\nfrom kupgrade.cli.render import emit, unheard\n"
        "try:\n    while True: emit('x' * 4096)\nexcept BrokenPipeError: unheard()\n"
        "print('more')\nsys.exit(42)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (42, b"")

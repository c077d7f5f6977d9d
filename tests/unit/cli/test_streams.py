"""Streams that are closed, full or of another character set: each verb says what it can, and never a traceback."""

from __future__ import annotations

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

"""The linters and the type checker agree with the tree; a missing tool is a failure, never a skip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*argv: str) -> None:
    done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    """The rules of pyproject.toml hold in the package and in the tests."""
    run("ruff", "check", "kupgrade", "tests")


def test_the_types_are_right() -> None:
    """mypy, strict, finds nothing in the package."""
    run("mypy")


def test_the_tests_call_what_there_is() -> None:
    """Fakes, and what runs inside of virtual hosts, fit the package: a parameter that is gone is found here."""
    run("mypy", "--config-file", "tests/mypy.ini")

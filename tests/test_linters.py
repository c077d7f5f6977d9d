"""Linters are tests: one command says yes or no."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "words", [("ruff", "check", "--no-cache", "."), ("mypy", "--no-incremental")], ids=["ruff", "mypy"]
)
def test_the_linter_has_nothing_to_say(words: tuple[str, ...]) -> None:
    """Clean, or the tool's own words."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_shell_scripts_parse() -> None:
    """Every shell script in the tree is at least a program."""
    scripts = [ROOT / "packaging/bootstrap", ROOT / ".ci/run", *ROOT.glob("tests/**/*.sh")]
    for script in scripts:
        shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
        assert subprocess.run([shell, "-n", str(script)]).returncode == 0, script

"""Children take programs and libraries from another root directory only where those fit this one's loader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kupgrade.host import command
from kupgrade.host.command import LIBRARIES, LOADER


def tree(top: Path, loader: bytes = b"loader 1", said: str = "") -> Path:
    for name in ("usr/sbin", "usr/bin", LIBRARIES[0]):
        (top / name).mkdir(parents=True)
    (top / LIBRARIES[0] / LOADER).write_bytes(loader)
    tool = top / "usr/sbin/a-tool-of-tests"
    tool.write_text(f"#!/bin/sh\necho {said} $LD_LIBRARY_PATH\n")
    tool.chmod(0o755)
    return top


def test_programs_and_libraries_come_from_the_other_root_and_afterwards_do_not(tmp_path: Path) -> None:
    """The program there is the one that runs, with the libraries there; nothing of it is left behind."""
    ours, other = tree(tmp_path / "ours"), tree(tmp_path / "other", said="there")
    before = dict(os.environ)
    with command.tools_of(other, ours) as used:
        assert used
        said = command.run(["a-tool-of-tests"]).stdout.split()
    assert said == ["there", str(other / LIBRARIES[0])]
    assert dict(os.environ) == before
    assert "LD_LIBRARY_PATH" not in command.environment()


@pytest.mark.parametrize("case", ["another loader", "the same root", "no loader", "no such root"])
def test_a_root_that_does_not_fit_is_left_alone(case: str, tmp_path: Path) -> None:
    """Libraries of another release would crash under our loader; a root that is ours has nothing to add."""
    ours = tree(tmp_path / "ours")
    other = ours if case == "the same root" else tmp_path / "other"
    if case == "another loader":
        tree(other, b"loader 2")
    if case == "no loader":
        (tree(other) / LIBRARIES[0] / LOADER).unlink()
    before = dict(os.environ)
    with command.tools_of(other, ours) as used:
        assert not used
        assert dict(os.environ) == before

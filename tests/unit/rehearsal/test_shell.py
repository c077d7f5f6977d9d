"""The developers' virtual host: what is left of it when something goes wrong."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import shell
from kupgrade.rehearsal.options import Options


def given(state: Path) -> argparse.Namespace:
    return argparse.Namespace(state=state, memory=0, cpus=0, command=["true"], timeout=5.0)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host that is built at once, with a keeper that writes its PID into this file and stays."""
    pid = tmp_path / "pid"
    host: Any = SimpleNamespace(new_release="7.3", machine=lambda *words: None)
    monkeypatch.setattr(shell, "_build", lambda options: (Options(), host))

    def keep(*words: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pid.write_text(str(os.getpid()))
        time.sleep(60.0)
        os._exit(0)

    monkeypatch.setattr(shell, "keep", keep)
    return pid


def test_a_machine_that_does_not_come_up_is_not_left_running(
    kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`exec` takes its directory away, and with it the only way to end the machine."""

    def never(path: Path) -> Any:
        while not kept.exists() or not kept.read_text():
            time.sleep(0.01)
        raise KupgradeError("the virtual host did not come up")

    monkeypatch.setattr(shell, "Link", never)
    with pytest.raises(KupgradeError, match="come up"):
        shell.once(given(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.kill(int(kept.read_text()), 0)


def test_a_keeper_that_was_killed_does_not_keep_its_place(kept: Path, tmp_path: Path) -> None:
    """Its machine ended with it; what it wrote down is of no account."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    note = tmp_path / "keeper.json"
    note.write_text(json.dumps({"pid": os.getpid()}))
    with pytest.raises(KupgradeError, match="runs there"):
        shell.up(given(tmp_path))
    note.write_text(json.dumps({"pid": child}))
    shell.refuse_second(tmp_path)
    assert not note.exists()


def test_building_ends_when_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build_told_to_end: Callable[..., None]
) -> None:
    """A compiler that goes on alone would write where the next build begins."""
    monkeypatch.setattr(shell, "_build", build_told_to_end)
    with pytest.raises(KeyboardInterrupt):
        shell.build(given(tmp_path))

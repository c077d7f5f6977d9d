"""The new kernel makes the host its own: the order in which it writes, and what it sets back when it is alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.kernel import sysctl
from kupgrade.machine import going_home, new_root
from kupgrade.machine.places import Places
from kupgrade.machine.takeover import RealTakeover
from kupgrade.model.standby import INHERITED_FILE

PANIC = 7


class New(RealTakeover):
    """Over a root of files; `calls` in their order."""

    def __init__(self, root: Path) -> None:
        self.calls: list[str] = []
        libc: Any = SimpleNamespace(syncfs=lambda path: self.calls.append(f"syncfs {path.relative_to(root)}"))
        unused: Any = None
        super().__init__(Places(root), libc, unused, unused, "uuid")
        (root / "proc/sys/kernel").mkdir(parents=True)
        sysctl.set_panic_timeout(0, root)

    @contextlib.contextmanager
    def _window(self) -> Iterator[Any]:  # type: ignore[override]
        yield SimpleNamespace(channel=SimpleNamespace(declare_commit=lambda: self.calls.append("flag")))


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> New:
    made = New(tmp_path)
    monkeypatch.setattr(new_root, "prepare", lambda *_: made.calls.append("prepare"))
    monkeypatch.setattr(new_root, "merge", lambda *_: (made.calls.append("merge"), 12.0)[1])
    monkeypatch.setattr(going_home, "thaw", lambda _: made.calls.append("thaw"))
    return made


def test_the_flag_comes_before_the_disk_and_the_disk_before_the_rest(new: New) -> None:
    """Everything that was written since is on disk when the step is over."""
    assert new.take_disk() == 12.0
    assert new.calls == ["prepare", "flag", "merge", "thaw", "syncfs var/lib/kupgrade"]


def test_a_merge_that_fails_leaves_nothing_frozen(new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure could not even be recorded."""

    def merge(*_: object) -> float:
        raise KupgradeError("It takes too long")

    monkeypatch.setattr(new_root, "merge", merge)
    with pytest.raises(KupgradeError):
        new.take_disk()
    assert new.calls == ["prepare", "flag", "thaw"]


def test_a_panic_restarts_the_machine_again_only_when_the_old_kernel_is_gone(new: New) -> None:
    """Until then the restart would be taken for a wish to be stopped; nor may it be forgotten."""
    (new.places.run).mkdir(parents=True)
    assert new.retire((), 0.01, PANIC)["retired"] == 0
    assert sysctl.panic_timeout(new.places.root) == 0
    found = new.places.root / INHERITED_FILE
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_text('{"stage": "done", "cpus": 4, "kept": []}')
    assert new.retire((), 0.01, PANIC) == {"retired": 1, "stage": "done", "cpus": 4}
    assert sysctl.panic_timeout(new.places.root) == PANIC


def test_an_old_kernel_that_has_left_is_not_said_to_be_there(new: New) -> None:
    """What it left may come late, or never: told as that, and where it stands; a panic may restart the machine."""
    found = new.places.root / INHERITED_FILE
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_text('{"stage": "taking", "doing": "memory block 14 comes online"}')
    told = new.retire((), 0.01, PANIC)
    assert told["retired"] == 0
    assert "has left" in str(told["why"]) and "memory block 14" in str(told["why"])
    assert new.retired() is False
    assert sysctl.panic_timeout(new.places.root) == PANIC

"""The way back of the freeze when one of several workloads does not thaw."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import cgroup
from kupgrade.machine import copies
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.places import Places
from kupgrade.model.workload import Workload
from kupgrade.steps.base import UndoContext
from kupgrade.steps.freeze import Freeze, WasFrozen

WORKLOADS = tuple(Workload(name, "", f"/{name}", pid, (pid,)) for name, pid in (("a", 11), ("b", 12), ("c", 13)))


def test_one_that_does_not_thaw_keeps_no_other_from_it() -> None:
    """It is told; the others serve."""
    thawed = []

    def thaw(workload: Workload) -> None:
        if workload.name == "a":
            raise KernelError("write", "/a/cgroup.freeze", errno.ETIMEDOUT)
        thawed.append(workload.name)

    host = cast(Any, SimpleNamespace(freezer=SimpleNamespace(thaw=thaw)))
    context = UndoContext(same_boot=True, in_new_kernel=False, images_valid=False)
    with pytest.raises(KernelError, match=r"/a/cgroup\.freeze"):
        Freeze(WORKLOADS).undo(host, WasFrozen(()), context)
    assert thawed == ["b", "c"]


def test_a_copy_that_does_not_thaw_keeps_no_other_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were restored, as well."""
    continued = []

    def thaw(path: str, _timeout: float) -> None:
        if path == "/a":
            raise KernelError("write", "/a/cgroup.freeze", errno.ETIMEDOUT)

    monkeypatch.setattr(cgroup, "state", lambda _path: cgroup.FreezerState.FROZEN)
    monkeypatch.setattr(cgroup, "thaw", thaw)
    monkeypatch.setattr(copies, "send", lambda pid, _signal: continued.append(pid))
    with pytest.raises(KernelError, match=r"/a/cgroup\.freeze"):
        RealCheckpoints(Places(tmp_path), cast(Any, None)).thaw_restored(WORKLOADS)
    assert continued == [11, 12, 13]

"""Which processes a workload has when it is dumped."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import cgroup, proc
from kupgrade.machine import copies
from kupgrade.model.workload import Workload

SERVER = Workload(name="db", unit="db.service", cgroup="/db", root_pid=500, pids=(500, 501))


def run(monkeypatch: pytest.MonkeyPatch, parents: dict[int, int], gone: tuple[int, ...] = ()) -> tuple[int, ...]:
    def process(pid: int) -> Any:
        if pid not in parents:
            raise KernelError("read", f"/proc/{pid}", errno.ENOENT)
        return SimpleNamespace(ppid=parents[pid])

    monkeypatch.setattr(cgroup, "members", lambda _path: tuple(sorted((*parents, *gone))))
    monkeypatch.setattr(proc, "process", process)
    return copies.tree(SERVER)


def test_children_that_began_since_the_plan_are_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that ended are not."""
    assert run(monkeypatch, {500: 1, 777: 500, 778: 777}, gone=(779,)) == (500, 777, 778)


@pytest.mark.parametrize("parents", [{500: 1, 600: 1}, {500: 1, 501: 500, 600: 7}, {501: 500}])
def test_what_is_not_below_the_main_process_is_named(monkeypatch: pytest.MonkeyPatch, parents: dict[int, int]) -> None:
    """criu would dump one tree, and a process beside it would be lost without a word."""
    with pytest.raises(KupgradeError, match="not one tree"):
        run(monkeypatch, parents)


def test_a_copy_that_is_forked_while_copies_are_ended_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child may have a lower PID than its parent, and be looked for before it is there."""
    alive = {500}

    def send(pid: int, _number: int) -> None:
        alive.discard(pid)
        if pid == 500:
            alive.add(300)

    monkeypatch.setattr(copies, "belongs", lambda pid, _workload: pid in alive)
    monkeypatch.setattr(copies, "send", send)
    monkeypatch.setattr(copies, "_PATIENCE", 0.5)
    copies.end([Workload(name="db", unit="db.service", cgroup="/db", root_pid=500, pids=(300, 500))])
    assert not alive

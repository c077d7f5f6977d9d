"""Cgroups below a service's: on a fake hierarchy, and with real processes where this machine lets us make some."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import cgroup, cgroup_tree, proc
from kupgrade.kernel.cgroup_tree import Cell, Owner
from kupgrade.machine import cells

Build = Callable[..., None]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A cgroup in the fake hierarchy."""

    def make(path: str, procs: str = "", kind: str = "domain", control: str = "", frozen: str = "0") -> None:
        folder = tmp_path / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("memory pids\n")
        values = {"procs": procs, "type": kind, "subtree_control": control, "freeze": frozen}
        for name, value in {**values, "max.depth": "max", "max.descendants": "5"}.items():
            (folder / f"cgroup.{name}").write_text(f"{value}\n")

    return make


def test_the_cgroups_of_a_service_are_read_parents_first(build: Build, tmp_path: Path) -> None:
    """Who is in which, and what bounds the service has set itself; of root's files nothing."""
    build("a.service", "5")
    build("a.service/w", "7\n6\n")
    build("a.service/w/x")
    found = cgroup_tree.cells("/a.service", tmp_path)
    bounds = (("cgroup.max.descendants", "5"),)
    assert [(each.path, each.pids, each.bounds) for each in found] == [
        ("", (5,), bounds),
        ("w", (6, 7), bounds),
        ("w/x", (), bounds),
    ]


def test_what_is_applied_to_a_cgroup_stands_in_the_one_above(build: Build, tmp_path: Path) -> None:
    """Controllers, threads and a freeze of somebody's own are seen where they are."""
    build("a.service", control="memory pids")
    build("a.service/w", "7", frozen="1")
    build("a.service/w/x", kind="threaded")
    first, second = cgroup_tree.uses("/a.service", tmp_path)
    assert (first.path, first.pids, first.controllers, first.frozen) == ("w", (7,), ("memory", "pids"), True)
    assert (second.path, second.kind, second.controllers, second.frozen) == ("w/x", "threaded", (), False)


@pytest.mark.parametrize(
    ("starter", "unit"),
    [("/s/a.service", "/s/a.service"), ("/s/a.service/main", "/s/a.service"), ("/t/a.service", "/t/a.service")],
)
def test_the_start_process_tells_the_cgroup_of_its_unit(starter: str, unit: str) -> None:
    """Also when the unit has a cgroup for it below its own, or another slice than before."""
    assert cells.unit_cgroup("/s/a.service", starter) == unit


@pytest.fixture
def service() -> Iterator[str]:
    """A cgroup of our own in the real hierarchy, removed again with all in and below it."""
    name = f"/kupgrade-test-{os.getpid()}"
    try:
        folder = cgroup.directory(name)
        folder.mkdir()
    except (KernelError, OSError) as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield name
    for pid in cgroup.members(name):
        os.kill(pid, 9)
    deadline = time.monotonic() + 10
    while cgroup.populated(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        path.rmdir()
    folder.rmdir()


@pytest.fixture
def sleepers() -> Iterator[tuple[int, int]]:
    """Two processes that do nothing."""
    made = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield made[0].pid, made[1].pid
    for each in made:
        each.kill()
        each.wait()


def test_real_processes_come_back_into_real_cgroups(service: str, sleepers: tuple[int, int]) -> None:
    """As after a restore: flat in the service's cgroup; then with all cgroups, owners and bounds as they were."""
    top, (one, other) = cgroup.directory(service), sleepers
    for path in ("sup", "sup/worker", "empty"):
        (top / path).mkdir()
    for pid, path in ((one, "sup"), (other, "sup/worker")):
        (top / path / "cgroup.procs").write_text(str(pid))
    for path in ("", "empty", "empty/cgroup.procs"):
        os.chown(top / path, 1234, 2345)
    (top / "cgroup.max.depth").write_text("4")
    before = cgroup_tree.cells(service)
    assert Cell("empty", (), (Owner(".", 1234, 2345), Owner("cgroup.procs", 1234, 2345))) in before
    assert cgroup_tree.misplaced(service, before) == ()
    for pid in sleepers:
        (top / "cgroup.procs").write_text(str(pid))
    for path in ("sup/worker", "sup", "empty"):
        (top / path).rmdir()
    os.chown(top, 0, 0)
    (top / "cgroup.max.depth").write_text("max")
    assert set(cgroup_tree.misplaced(service, before)) == set(sleepers)
    for _ in range(2):  # one that was cut off does it again
        cells.fill(service, before)
        assert cgroup_tree.cells(service) == before
    assert proc.process(other).cgroup == f"{service}/sup/worker"


def test_a_process_that_cannot_be_moved_fails_the_restore(
    service: str, sleepers: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is somewhere else is named."""
    wanted = (Cell("", (sleepers[0],)), Cell("sup", (sleepers[1],)))
    monkeypatch.setattr(cgroup_tree, "make", lambda *_: None)
    with pytest.raises(KupgradeError, match=str(sleepers[1])) as caught:
        cells.fill(service, wanted)
    assert "differ" in caught.value.what


def test_a_controller_that_is_on_is_seen_on_a_real_cgroup(service: str) -> None:
    """Where the hierarchy has any; else there is nothing that could be lost."""
    top = cgroup.directory(service)
    (top / "w").mkdir()
    available = (top / "cgroup.controllers").read_text().split()
    for name in available[:1]:
        (top / "cgroup.subtree_control").write_text(f"+{name}")
    (use,) = cgroup_tree.uses(service)
    assert (use.path, use.controllers, use.kind, use.frozen) == ("w", tuple(available[:1]), "domain", False)

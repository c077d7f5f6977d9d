"""Images of live workloads in a copy of their host: restored one by one, probed, let go, looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host import nft
from kupgrade.live_images import restore
from kupgrade.live_images.restore import Restoring
from kupgrade.machine.places import Places
from kupgrade.model.codec import encode
from kupgrade.model.live_images import LateFile, Restored, RestoreRequest
from kupgrade.model.workload import Store, StoreKind, Workload

WEB = Workload("web", "web.service", "/web", 700, (700,), tcp_ports=(80,))
DB = Workload("db", "db.service", "/db", 800, (800, 801))


@dataclass
class Ports:
    """All ports in one: notes what is done, and fails at one word of it."""

    done: list[str] = field(default_factory=list)
    fails: str = ""
    adopted_as: str = ""
    runs: bool = True
    there: bool = True

    def note(self, word: str) -> None:
        self.done.append(word)
        if word == self.fails:
            raise KupgradeError(f"{word} failed", "criu says why")

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **options: self.note(name)

    def hold(self, workload: Workload, upgrade: str, timeout: int) -> None:
        self.note(f"hold {workload.name}")

    def restored(self, workloads: Any) -> bool | None:
        return self.there if self.done[-1].startswith("restore ") else False

    def restore(self, store: Store, workloads: tuple[Workload, ...], timeout: float, *, in_place: bool) -> Any:
        assert not in_place
        self.note(f"restore {workloads[0].name}")
        return {}

    def fetched(self, store: Store) -> dict[str, float]:
        return {}

    def adopted(self, workload: Workload) -> str:
        return self.adopted_as if "release" in self.done else ""

    def running(self, workloads: Any) -> bool | None:
        return self.runs

    def probe(self, workload: Workload) -> None:
        self.note(f"probe {workload.name}")

    def kill(self, workloads: tuple[Workload, ...]) -> None:
        self.note(f"kill {workloads[0].name}")


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def made(ports: Ports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Restoring:
    (tmp_path / "late").mkdir()
    (tmp_path / "late/1").write_text("one")
    files = (LateFile("/log", "1", 3, 0o644, 0, 0),)
    store = Store(StoreKind.DISK, str(tmp_path / "images"))
    request = RestoreRequest(store, (WEB, DB), str(tmp_path / "late"), files, "7.3", timeout=5.0, settle=0.05)
    found = Restoring(request=request, places=Places(tmp_path), images=ports, freezer=ports)  # type: ignore[arg-type]
    for name in ("systemd", "units", "checkpoints", "health"):
        setattr(found, name, ports)
    monkeypatch.setattr(restore, "_POLL", 0.01)
    monkeypatch.setattr(nft, "lock", lambda tcp, udp, direction: ports.note(f"lock {sorted(tcp)}"))
    monkeypatch.setattr(nft, "unlock", lambda: ports.note("unlock"))
    monkeypatch.setattr(restore, "ask", lambda probe, name: ports.note(f"ask {name}"))
    return found


def test_they_are_restored_in_the_dark_and_let_go(made: Restoring, ports: Ports, tmp_path: Path) -> None:
    """Files first, units held; probed behind the lock; then as units of their own, looked at for a while."""
    found = made.all_of()
    assert [(each.name, each.error) for each in found] == [("web", ""), ("db", "")]
    assert all(each.seconds is not None for each in found)
    assert (tmp_path / "log").read_text() == "one"
    wanted = ["hold web", "hold db", "reload", "lock [80]", "restore web", "probe web", "thaw_restored"]
    wanted += ["restore db", "probe db", "unlock", "release", "ask web", "ask db"]
    assert [word for word in ports.done if word in wanted][: len(wanted) + 1] == [
        *wanted[:9],
        "thaw_restored",
        *wanted[9:],
    ]


@pytest.mark.parametrize("fails", ["summon", "restore web", "probe web", "thaw_restored"])
def test_one_that_cannot_be_restored_is_told_and_ended(made: Restoring, ports: Ports, fails: str) -> None:
    """With criu's word; what is left of it does not run on."""
    ports.fails = fails
    found = made.all_of()
    assert found[0] == Restored("web", "criu says why")
    assert "kill web" in ports.done


def test_one_keeps_no_other_from_it(made: Restoring, ports: Ports) -> None:
    """The next one is restored all the same."""
    ports.fails = "restore web"
    assert [each.error for each in made.all_of()] == ["criu says why", ""]


def test_half_a_tree_is_none(made: Restoring, ports: Ports) -> None:
    """Not all of its processes have their PIDs."""
    ports.there = False
    assert made.all_of()[0].error == "not all of its processes are there"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"runs": False}, "it does not run"),
        ({"adopted_as": "web.service is failed"}, "web.service is failed"),
        ({"fails": "ask web"}, "ask web failed: criu says why"),
    ],
)
def test_one_that_ends_once_it_runs_was_not_restored(
    made: Restoring, ports: Ports, changes: dict[str, Any], told: str
) -> None:
    """It was restored, and is not well after a moment."""
    for name, value in changes.items():
        setattr(ports, name, value)
    found = made.all_of()[0]
    assert found.error == f"it was restored, and then: {told}"
    assert found.seconds is not None


def test_what_cannot_be_ended_is_told(made: Restoring, ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what went wrong first."""

    def kill(_workloads: Any) -> None:
        raise KupgradeError("it does not end")

    ports.fails = "restore web"
    monkeypatch.setattr(ports, "kill", kill, raising=False)
    assert made.all_of()[0].error == "criu says why; it does not end"


def test_the_answer_is_one_line(
    made: Restoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A JSON array, the last line of what is said."""
    (tmp_path / "request").write_text(json.dumps(encode(made.request)))
    monkeypatch.setattr(Restoring, "all_of", lambda self: (Restored("web", "", 1.5),))
    assert restore.main([str(tmp_path / "request")]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "web", "error": "", "seconds": 1.5}]

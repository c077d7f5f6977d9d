"""A dump of workloads that run on: in which order, and that they run on whatever fails."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import ExitCode, KupgradeError, NotNowError
from kupgrade.host import criu_seen
from kupgrade.host.criu import CheckpointError
from kupgrade.host.criu_seen import SeenFile
from kupgrade.live_images import dump, release
from kupgrade.live_images.dump import Dumping
from kupgrade.machine import dumping, rounds
from kupgrade.machine.places import Places
from kupgrade.model.codec import encode
from kupgrade.model.live_images import DumpAnswer, DumpRequest, Hold
from kupgrade.model.workload import Store, StoreKind, Watched, Workload
from kupgrade.statedir import StateDirectory

WEB = Workload("web", "web.service", "/web", 700, (700,))
DB = Workload("db", "db.service", "/db", 800, (800, 801))


@dataclass
class Ports:
    """All ports in one: notes what is done, and fails at one word of it."""

    places: Places
    done: list[str] = field(default_factory=list)
    fails: str = ""
    frozen_before: bool | None = False
    all_filled: bool = True

    def note(self, word: str) -> None:
        self.done.append(word)
        if word == self.fails:
            raise CheckpointError(f"{word} failed", "why it did")

    def __getattr__(self, name: str) -> Any:  # what nobody looks at closely
        return lambda *words, **options: self.note(name)

    @property
    def criu(self) -> Ports:
        return self

    def filled(self, workloads: Any) -> bool:
        return self.all_filled

    def frozen(self, workload: Workload) -> bool | None:
        return self.frozen_before

    def freeze(self, workload: Workload) -> None:
        self.note(f"freeze {workload.name}")

    def watched(self, workloads: Any) -> tuple[Watched, ...]:
        return (Watched("web.service", 5.0),)

    def watch(self, workload: Workload, seconds: float) -> None:
        self.note(f"watch {workload.name} {seconds:g}")

    def lock(self, workloads: Any, *, both: bool) -> None:
        assert not both
        assert release.read(self.places) is not None, "it is written down before"
        self.note("lock")

    def pre_dump(self, store: Store, rounds: Any) -> list[int]:
        self.note("pre-dump")
        return [100 for _ in rounds]

    def changed(self, workload: Workload) -> int:
        return 0

    def run_on(self, hold: Hold, *, sound: bool) -> None:
        self.note(f"run on {'sound' if sound else 'unsound'}")

    def let_go(self, hold: Hold, *, sound: bool) -> None:
        assert hold.dumpers
        assert (hold.locked, hold.watched) == (True, self.watched(()))
        self.note("let go")

    def all_of(self, hold: Hold, *, sound: bool) -> None:
        self.note("all of")
        release.note(self.places).unlink()


@pytest.fixture
def ports(tmp_path: Path) -> Ports:
    (tmp_path / "scratch/late").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    return Ports(Places(tmp_path))


@pytest.fixture
def made(ports: Ports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dumping:
    request = DumpRequest(
        store=Store(StoreKind.DISK, str(tmp_path / "scratch/images")),
        workloads=(WEB, DB),
        rounds=3,
        late=str(tmp_path / "scratch/late"),
        since=0.0,
        absent=(),
        reserve=0,
        lock=str(tmp_path / "lock"),
        old_release="6.12",
        new_release="7.3",
    )
    found = Dumping(request=request, places=ports.places, images=ports, freezer=ports)  # type: ignore[arg-type]
    for name in ("units", "checkpoints", "network", "release"):
        setattr(found, name, ports)

    def dumped(_criu: Any, store: Store, workload: Workload) -> int:
        (Path(store.path) / workload.name / "final").mkdir(parents=True)
        ports.note(f"dump {workload.name}")
        return 10

    monkeypatch.setattr(dumping, "dump", dumped)
    monkeypatch.setattr(rounds, "preload", lambda: None)
    monkeypatch.setattr(criu_seen, "files", lambda directory: (SeenFile("/nowhere", 3),))
    monkeypatch.setattr(criu_seen, "stood_still", lambda directory: 0.25)
    return found


def test_memory_is_copied_first_and_nobody_stands_still_for_more_than_the_dump(made: Dumping, ports: Ports) -> None:
    """Watchdogs and lock before the freeze; thaw right after the dump, before anything is checksummed."""
    found = made.all_of()
    order = [word for word in ports.done if not word.startswith("dump ")]
    begun = ["prepare", "pre-dump", "remember", "prime", "watch web 0", "lock", "freeze web", "freeze db"]
    assert order == [*begun, "run on sound", "let go", "dismiss", "seal", "all of"]
    between = ports.done[ports.done.index("freeze db") : ports.done.index("run on sound")]
    assert sorted(between) == ["dump db", "dump web", "freeze db"]
    assert [(each.name, each.error, len(each.pauses)) for each in found.dumped] == [("web", "", 1), ("db", "", 1)]
    assert release.read(ports.places) is None


@pytest.mark.parametrize("fails", ["watch web 0", "lock", "freeze web", "freeze db", "dump web"])
def test_they_run_on_whatever_fails(made: Dumping, ports: Ports, fails: str) -> None:
    """Thawed with a look at their sockets, unlocked, watched; a failed dump keeps no other from being one."""
    ports.fails = fails
    if fails == "dump web":
        found = {each.name: each.error for each in made.all_of().dumped}
        assert found == {"web": "why it did", "db": ""}
        assert "run on unsound" in ports.done
    else:
        with pytest.raises(KupgradeError, match=fails):
            made.all_of()
        assert release.read(ports.places) is not None  # whoever comes after looks once more
        assert ("run on unsound" in ports.done) == fails.startswith("freeze")
    assert ports.done.count("let go") == 1


def test_a_round_that_fails_leaves_nobody_frozen(made: Dumping, ports: Ports) -> None:
    """criu may have ended before it thawed."""
    ports.fails = "pre-dump"
    with pytest.raises(CheckpointError):
        made.all_of()
    assert ports.done == ["prepare", "pre-dump", "all of"]


def test_a_failure_afterwards_forgets_nobody(made: Dumping, ports: Ports) -> None:
    """The disk is full when the images are summed: what criu made beside files goes all the same."""
    ports.fails = "seal"
    with pytest.raises(CheckpointError):
        made.all_of()
    assert ports.done[-1] == "all of"


def test_whom_a_killed_dump_held_is_let_go_first(made: Dumping, ports: Ports) -> None:
    """Before anything is looked at or dumped."""
    release.write(ports.places, Hold((WEB,), locked=True))
    made.all_of()
    assert ports.done[0] == "all of"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"frozen_before": True}, "web does not run"),
        ({"frozen_before": None}, "web does not run"),
        ({"all_filled": False}, "cannot be dumped yet"),
    ],
)
def test_what_does_not_run_is_not_touched(made: Dumping, ports: Ports, changes: dict[str, Any], told: str) -> None:
    """A cgroup that somebody has frozen would be thawed in the end; memory that is still filled is not all there."""
    for name, value in changes.items():
        setattr(ports, name, value)
    with pytest.raises(KupgradeError, match=told):
        made.all_of()
    assert ports.done == []


def test_no_upgrade_begins_meanwhile(made: Dumping, ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither here nor there: nothing is dumped while one is beginning, and none begins while something is dumped."""
    states = StateDirectory(ports.places.root)
    seen: list[bool] = []

    def prepare(_store: Store) -> None:
        with pytest.raises(NotNowError), states.none_begins():
            pass
        seen.append(True)

    monkeypatch.setattr(ports, "prepare", prepare, raising=False)
    with states.none_begins(), pytest.raises(NotNowError):
        made.all_of()
    assert (ports.done, seen) == ([], [])
    made.all_of()
    assert seen == [True]


@pytest.fixture
def served(made: Dumping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[DumpAnswer], int]:
    """The service, whose dump ends so."""

    def serve(answer: DumpAnswer) -> int:
        images = Path(made.request.store.path)
        images.mkdir(mode=0o700)
        (images / "pages-1.img").write_text("secret")
        (tmp_path / "scratch/late/1").write_text("secret")
        (tmp_path / "request").write_text(json.dumps(encode(made.request)))
        monkeypatch.setattr(dump, "answer", lambda request, places: answer)
        monkeypatch.setattr(dump.signal, "signal", lambda number, action: None)
        return dump.main([str(tmp_path / "request"), str(tmp_path / "answer")])

    return serve


def test_images_that_nobody_waits_for_are_wiped(served: Callable[[DumpAnswer], int], tmp_path: Path) -> None:
    """The rehearsal was killed: its lock is free."""
    (tmp_path / "lock").touch()
    assert served(DumpAnswer()) == 1
    assert not (tmp_path / "answer").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_who_waits_gets_an_answer(served: Callable[[DumpAnswer], int], tmp_path: Path) -> None:
    """And the images."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert served(DumpAnswer(bytes=7)) == 0
    assert json.loads((tmp_path / "answer").read_text())["bytes"] == 7
    assert (tmp_path / "scratch/images/pages-1.img").exists()


def test_a_lock_that_is_gone_is_nobodys(tmp_path: Path) -> None:
    """With the rehearsal's directory."""
    assert dump.abandoned(tmp_path / "lock")


def test_what_fails_is_answered(made: Dumping, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its exit code; of criu its own word."""

    def fails(_self: Dumping) -> DumpAnswer:
        raise error

    monkeypatch.setattr(Dumping, "all_of", fails)
    error: Exception = NotNowError("open", "to 7.3", "wait")
    failure = dump.answer(made.request, made.places).failure
    assert failure is not None
    assert (failure.what, failure.why, failure.code) == ("open", "to 7.3", ExitCode.NOT_NOW)
    error = OSError(28, "No space left on device")
    failure = dump.answer(made.request, made.places).failure
    assert failure is not None and "No space" in failure.why
    assert dump.told(CheckpointError("criu dump failed", "io_uring", "See")) == "io_uring"
    assert dump.told(KupgradeError("it is gone")) == "it is gone"

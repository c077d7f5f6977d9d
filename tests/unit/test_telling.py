"""What is told while an upgrade goes on, and when the worker's heart beats."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade import telling
from kupgrade.core import events
from kupgrade.core.events import fields_of
from kupgrade.core.fold import fold
from kupgrade.host import journald
from kupgrade.machine import host
from kupgrade.model.plan import Phase, Plan, Scope, Side, StepSpec
from kupgrade.model.record import Record, RecordKind, State
from tests.crash.matrix import GOOD
from tests.fakes.drive import play
from tests.fakes.drive_spawn import play_spawn, two_kernels
from tests.fakes.two_kernels_parts import SpawnBehaviour
from tests.unit.host.test_journald_and_notify import decode


@pytest.fixture(scope="module")
def upgrade() -> tuple[tuple[Record, State], ...]:
    records = play(GOOD, {}).log.records
    return tuple((record, fold(records[: at + 1])) for at, record in enumerate(records))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    (tmp_path / journald.SOCKET).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        server.bind(str(tmp_path / journald.SOCKET))
        server.settimeout(5)
        yield server


def test_each_record_reaches_the_journal(upgrade: Any, journal: socket.socket, tmp_path: Path) -> None:
    """With upgrade, state and step; what is printed elsewhere is printed, too."""
    printed: list[Record] = []
    tell = telling.Teller(lambda record, _state: printed.append(record), tmp_path)
    for record, state in upgrade[:6]:
        tell(record, state)
        fields = decode(journal.recv(65536))
        assert fields["KUPGRADE_UPGRADE"] == str(state.plan.upgrade)
    assert printed == [record for record, _ in upgrade[:6]]


def test_in_the_blackout_of_a_boot_records_are_held(upgrade: Any, journal: socket.socket, tmp_path: Path) -> None:
    """They come when the workloads run, in order; an agent that writes into the journal anyway holds nothing."""
    tell = telling.Teller(lambda *_: None, tmp_path)
    journal.setblocking(False)
    sent: list[str] = []
    for record, state in upgrade:
        tell(record, state)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent.append(decode(journal.recv(65536))["MESSAGE"])
    assert sent == [fields_of(record, state)["MESSAGE"] for record, state in upgrade]
    frozen = next(at for at, (_, state) in enumerate(upgrade) if telling.stands_still(state))
    held = telling.Teller(lambda *_: None, tmp_path)
    held(*upgrade[frozen])
    assert len(held.held) == 1


def test_where_output_is_the_journal_nothing_is_told_twice(
    upgrade: Any, journal: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record with fields takes the place of the printed line; without a journal the line stays."""
    monkeypatch.setattr(journald, "is_stream", lambda: True)
    printed: list[Record] = []
    telling.Teller(lambda record, _state: printed.append(record), tmp_path)(*upgrade[1])
    assert not printed
    telling.Teller(lambda record, _state: printed.append(record), tmp_path / "none")(*upgrade[1])
    assert printed == [upgrade[1][0]]


def test_the_manager_has_a_status_line(upgrade: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Release, stage and the last event."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(telling, "notify", lambda *_, **words: said.append(words))
    tell = telling.Teller(lambda *_: None, tmp_path)
    for record, state in upgrade:
        tell(record, state)
    assert said[0]["STATUS"].endswith("planned; A kernel upgrade has begun")
    assert any("handing-over; freeze: done" in words["STATUS"] for words in said)


def test_the_heart_beats_throughout_the_blackout(upgrade: Any) -> None:
    """However long a step takes there; outside of it a step that is older than the limit lets the manager act."""
    now = [0.0]
    heart = telling.Heart(clock=lambda: now[0])
    judged = {True: 0, False: 0}
    for _, state in upgrade:
        heart.seen(state)
        assert heart.well
        now[0] += telling.STEP_LIMIT + 1
        assert heart.well is heart.still
        judged[heart.still] += 1
    assert min(judged.values()) > 10


def test_it_beats_in_a_step_that_only_waits(plan_with: Callable[..., Plan], records_of: Callable[..., Any]) -> None:
    """For as long as the policy says; the step after it is judged again."""
    steps = tuple(StepSpec(kind, {}, Scope.DISK, kind, "none") for kind in ("soak", "mark-good"))
    plan = plan_with(phases=(Phase("serving", Side.NEW, steps),))
    records = records_of(plan, (RecordKind.STARTED, 0), (RecordKind.DONE, 0), (RecordKind.STARTED, 1))
    now = [0.0]
    heart = telling.Heart(clock=lambda: now[0])
    well = []
    for at in range(2, len(records) + 1):
        heart.seen(fold(records[:at]))
        now[0] += telling.STEP_LIMIT * 2
        well.append(heart.well)
    assert well == [True, False, False]


def test_it_beats_three_times_as_often_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a thread of its own, until it is stopped; without a manager there is no thread."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert telling.Heart().start() is False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        heart = telling.Heart()
        assert heart.start()
        assert [server.recv(64) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        heart.stop()
        for thread in threading.enumerate():
            if thread.name == "heart":
                thread.join(10)
                assert not thread.is_alive()


def test_units_and_code_agree() -> None:
    """The worker's unit asks for what the worker does; no watchdog stands over the agent of a boot."""
    units = Path(__file__).parents[2] / "packaging/systemd"
    worker = (units / "kupgrade-apply.service").read_text()
    assert all(line in worker.splitlines() for line in ("Type=notify", "NotifyAccess=all", "WatchdogSec=3min"))
    assert "WatchdogSec" not in (units / "kupgrade-resume.service").read_text()


def test_the_worker_is_ready_before_it_does_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, upgrade: Any
) -> None:
    """Also when there is nothing to do: a unit of Type=notify that never says so has failed."""
    from kupgrade import resume

    said: list[dict[str, Any]] = []
    monkeypatch.setattr(telling, "notify", lambda *_, **words: said.append(words))
    monkeypatch.setattr(resume.host, "await_predecessors", lambda _patience: None)
    monkeypatch.setattr(resume, "StateDirectory", lambda _root: _Empty())
    assert resume.main(["--worker"]) == 0
    assert [next(iter(words)) for words in said] == ["EXTEND_TIMEOUT_USEC", "READY"]


@pytest.mark.parametrize("stage", ["before", "in it", "over"])
def test_a_worker_that_comes_into_the_blackout_writes_no_metrics_first(
    monkeypatch: pytest.MonkeyPatch, upgrade: Any, stage: str
) -> None:
    """A killed one may have left the file systems frozen: who is to thaw them must not wait for one."""
    from kupgrade import resume

    still = [events.stands_still(state) for _, state in upgrade]
    end = {"before": 1, "in it": still.index(True) + 1, "over": len(still)}[stage]
    records = [record for record, _ in upgrade[:end]]
    deeds: list[str] = []

    def run(*_: Any, **__: Any) -> State:
        deeds.append("run")
        return upgrade[-1][1]

    monkeypatch.setattr(resume.host, "await_predecessors", lambda _patience: None)
    monkeypatch.setattr(resume.host, "forget_rollback_request", lambda: None)
    monkeypatch.setattr(resume.host, "run", run)
    monkeypatch.setattr(resume, "_tell_metrics", lambda: deeds.append("metrics"))
    journal = SimpleNamespace(records=records, close=lambda: None)
    states = SimpleNamespace(open_current=lambda _patience: journal, finish=lambda _upgrade: None)
    monkeypatch.setattr(resume, "StateDirectory", lambda _root: states)
    resume.main(["--worker"])
    assert deeds == (["run", "metrics"] if stage == "in it" else ["metrics", "run", "metrics"])


class _Empty:
    open_current: Callable[..., None] = staticmethod(lambda _patience: None)


def test_the_blackout_is_told_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel in which the workloads run again: right after the thaw there, or after the way back here."""
    original = host.run
    seen: list[Record] = []

    def run(journal: Any, *, watch: Any, **more: Any) -> State:
        def both(record: Record, state: State) -> None:
            seen.append(record)
            watch(record, state)

        return original(journal, watch=both, **more)

    with two_kernels():
        monkeypatch.setattr(host, "run", run)
        for behaviour, before in ((SpawnBehaviour(), "done"), (SpawnBehaviour("x", dump_fails=True), "undone")):
            seen.clear()
            play_spawn(behaviour, {})
            told = [at for at, record in enumerate(seen) if "blackout" in record.data]
            assert len(told) == 1
            assert seen[told[0] - 1].kind.value == before

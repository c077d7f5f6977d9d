"""What a rehearsal makes of faults that leave their file or none, and of what `kupgrade apply` says."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host.command import Completed
from kupgrade.rehearsal import fault_port, faults, inside, qemu, report, scenario, virtual_host
from kupgrade.rehearsal.client import Recording
from kupgrade.rehearsal.fault_port import Told
from kupgrade.rehearsal.judge import Evidence, WorkloadSeen
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.options import Options, Trial
from kupgrade.rehearsal.qemu import Event


@pytest.mark.parametrize(
    ("engine", "fault", "committed", "spent"),
    [
        ("spawn", "probe-fails", False, True),
        ("spawn", "probe-fails", True, False),
        ("spawn", "kill-tool@dump", False, False),
        ("spawn", "", False, False),
        ("kexec", "probe-fails", False, False),
    ],
)
def test_a_fault_is_spent_on_a_snapshot_only_where_that_was_given_up(
    engine: str, fault: str, committed: bool, spent: bool
) -> None:
    """An upgrade that committed in spite of its fault was not struck, and its file is left behind."""
    nothing: Any = None
    course = scenario._Course(Options(engine=engine), nothing, nothing, nothing, nothing, nothing)
    parsed = faults.parse(fault, (), engine) if fault else None
    assert course.spent_on_snapshot(parsed, committed=committed) is spent


def a_machine(state: Path, console: str = "", *events: str) -> Any:
    (state / "serial2.log").write_text(console)
    return SimpleNamespace(state=state, events=[Event(1.0, name) for name in events])


def test_a_sign_of_an_earlier_upgrade_is_none_of_this_one(tmp_path: Path) -> None:
    """Several faults share one life of a machine: each has to strike by itself."""
    cut, killed = faults.parse("power-cut@dump"), faults.parse("kill-agent@dump", (), "spawn")
    first = Told.now(a_machine(tmp_path))
    machine = a_machine(tmp_path, "fault: kill-agent\n", "RESET")
    assert first.struck_since(cut, machine, committed=False)
    assert first.struck_since(killed, machine, committed=False)
    second = Told.now(machine)
    assert not second.struck_since(cut, machine, committed=False)
    assert second.uncut_since(cut, machine) and not second.uncut_since(killed, machine)
    assert not first.uncut_since(cut, machine)
    assert not second.struck_since(killed, machine, committed=False)
    again = a_machine(tmp_path, "fault: kill-agent\nfault: kill-agent\n", "RESET", "RESET")
    assert second.struck_since(cut, again, committed=False)
    assert second.struck_since(killed, again, committed=False)


@pytest.mark.parametrize(("text", "engine"), [("kill-tool@cross:frozen", "kexec"), ("kill-agent@restore", "spawn")])
def test_a_fault_that_cannot_spend_its_file_struck_only_where_nothing_was_committed(
    text: str, engine: str, tmp_path: Path
) -> None:
    """After a commit the file would be gone: what the new kernel wrote is there, and who was killed never crossed."""
    machine = a_machine(tmp_path)
    told, fault = Told.now(machine), faults.parse(text, (), engine)
    assert told.struck_since(fault, machine, committed=False)
    assert not told.struck_since(fault, machine, committed=True)


def a_link(status: int, stdout: str = "", stderr: str = "") -> Any:
    return SimpleNamespace(run=lambda *words, **options: Completed(status, stdout, stderr))


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (0, inside.Answer()),
        (3, inside.Answer(refused="no")),
        (6, inside.Answer(refused="no")),
        (75, inside.Answer(refused="no")),
        (1, inside.Answer(broke="exit status 1: no")),
        (2, inside.Answer(broke="exit status 2: no")),
        (-9, inside.Answer(broke="exit status -9: no")),
    ],
)
def test_only_an_apply_that_says_no_refuses(status: int, answer: inside.Answer) -> None:
    """One that ends by a fault of its own, or is killed, has judged nothing."""
    assert inside.apply(a_link(status, stderr="no\n"), Options(), "7.3") == answer


def test_a_question_that_was_cut_off_does_not_say_that_an_upgrade_is_over() -> None:
    """A busy host takes longer than the shell was given."""
    assert inside.standing(a_link(0, "over\n")) == ("over", "")
    assert inside.standing(a_link(0, 'open\n00000000 {"kind":"crossed"}\n')) == ("open", "crossed")
    with pytest.raises(KupgradeError, match="where it stands"):
        inside.standing(a_link(-9))


SEEN = WorkloadSeen((329, 330), 329, True, 0, "check ok", ("1 329 0",))


class AClient:
    """One that saw a single request answered."""

    def stop(self, drain: float) -> Recording:
        made = Recording(sent=[1.0])
        made.take("0 1 329 330 1.0", 1.5)
        return made


def a_rehearsal(monkeypatch: pytest.MonkeyPatch, options: Options, *ends: str) -> scenario.Result:
    """Upgrades of one life, the first of which ends as the first of `ends`; an end may be `cold`."""
    left = list(ends)

    def upgrade(course: Any, old: str, new: str, trial: Trial, *, again: bool) -> Evidence:
        end = left.pop(0)
        asked = {"kind": "undo-requested", "step": None, "time": 1.0, "data": {"by": "operator"}}
        back = end in ("rolled-back", "cold")
        finished = {"kind": "finished", "step": None, "data": {"outcome": "rolled-back" if back else end}}
        journal = (*([asked] if back else []), {**finished, "time": 2.0})
        boots, runs = (("a",), old) if back else (("a", "b"), new)
        client = AClient().stop(0.0)
        made = Evidence(options.engine, "pmem", old, new, runs, boots, SEEN, SEEN, client, journal)
        return replace(made, fault=str(trial.fault or ""), cold_expected=end == "cold")

    monkeypatch.setattr(scenario, "_upgrade", upgrade)
    monkeypatch.setattr(scenario, "_client", lambda options, network: AClient())
    monkeypatch.setattr(AClient, "go_on", lambda self: None, raising=False)
    monkeypatch.setattr(inside, "prepare", lambda link, options: None)
    host: Any = SimpleNamespace(old_release="6.12", new_releases=("7.3",))
    link: Any = SimpleNamespace(boots=[])
    nothing: Any = None
    return scenario._generations(options, host, nothing, link, lambda text: None, nothing)


@pytest.mark.parametrize(
    ("options", "ends", "missing"),
    [
        (Options(cycles=2, rollback="gate"), ("rolled-back", "rolled-back", "committed"), []),
        (Options(cycles=2, rollback="gate"), ("committed",), ["taken back at gate", "let through"]),
        (
            Options(faults=(faults.parse("kill-tool@thaw"), faults.parse("kill-tool@dump"))),
            ("committed",),
            ["kill-tool@dump:intent"],
        ),
        (Options(), ("committed",), []),
    ],
)
def test_upgrades_that_were_asked_for_and_never_made_are_told(
    monkeypatch: pytest.MonkeyPatch, options: Options, ends: tuple[str, ...], missing: list[str]
) -> None:
    """One that commits too early ends the series; what it was to show is not shown."""
    result = a_rehearsal(monkeypatch, options, *ends)
    assert result.judged.get("not_made", []) == missing
    assert ("never made: " + ", ".join(missing) in report.text(result)) is bool(missing)


def test_each_request_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that ended with its host is not asked a second time for what it saw."""
    options = Options(faults=(faults.parse("power-cut@gate"),))
    assert [took for _, took in a_rehearsal(monkeypatch, options, "cold").latencies] == [0.5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_rehearsal_that_is_ended_from_outside_puts_its_things_away(number: signal.Signals) -> None:
    """As by Ctrl-C: whoever ends it, or closes its terminal, leaves no machine."""
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), scenario.interruptible():
        os.kill(os.getpid(), number)
        time.sleep(5.0)
    assert signal.getsignal(number) is before


def test_what_ignores_a_closed_terminal_goes_on_to_do_so() -> None:
    """It was started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with scenario.interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_building_can_be_ended_from_outside_too(
    monkeypatch: pytest.MonkeyPatch, build_told_to_end: Callable[..., None]
) -> None:
    """What it has started would else build on in a directory that the next one takes for its own."""
    monkeypatch.setattr(virtual_host, "build", build_told_to_end)
    with pytest.raises(KeyboardInterrupt):
        scenario.rehearse(Options(), lambda text: None)


def test_logs_that_cannot_be_kept_leave_no_directory_behind(tmp_path: Path) -> None:
    """The disk they were to go to is full, or gone."""
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        scenario.put_away(state, tmp_path / "file/below")
    assert not state.exists()


def test_the_network_ends_with_the_rehearsal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tap that stays open keeps its interface, and the namespace that it is in."""
    tap = os.open(os.devnull, os.O_RDONLY)
    gone: Any = SimpleNamespace(tap=lambda: tap, close=lambda: None)

    def start(*words: Any) -> Any:
        raise KupgradeError("QEMU did not start")

    machine = qemu.Machine(tmp_path / "image", None, None, "")
    host: Any = SimpleNamespace(old_release="6.12", tools=None, machine=lambda *words: machine)
    monkeypatch.setattr(virtual_host, "build", lambda *words, **options: host)
    monkeypatch.setattr(qemu, "run_directory", lambda: tmp_path / "state")
    monkeypatch.setattr(Network, "create", lambda: gone)
    monkeypatch.setattr(qemu, "start", start)
    with pytest.raises(KupgradeError, match="did not start"):
        scenario.rehearse(Options(), lambda text: None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(tap)


def test_a_log_that_cannot_be_kept_does_not_cost_the_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The disk it was to go to filled up meanwhile."""
    (tmp_path / "file").touch()
    told: list[str] = []
    link: Any = SimpleNamespace(boots=[SimpleNamespace(boot_id="a", release="6.12")])
    client: Any = SimpleNamespace(pause=lambda drain: AClient().stop(drain))
    nothing: Any = None
    options = Options(keep=tmp_path / "file/below")
    for name, value in (
        ("prepare_trial", None),
        ("look", SEEN),
        ("apply", inside.Answer(refused="no")),
        ("leftovers", ()),
        ("system_log", ""),
    ):
        monkeypatch.setattr(inside, name, lambda *words, _value=value, **more: _value)
    course = scenario._Course(options, nothing, link, client, told.append, a_machine(tmp_path))
    found = scenario._upgrade(course, "6.12", "7.3", Trial(), again=False)
    assert (found.running_release, found.after, found.refused) == ("6.12", SEEN, "no")
    assert "Not a directory" in told[-1] or "File exists" in told[-1]


def test_a_fault_that_cannot_be_passed_on_is_told_and_the_next_one_is(tmp_path: Path) -> None:
    """Its file is spent by then: without a word it would count as gone through."""
    reset = threading.Event()

    def refuse(text: str) -> None:
        raise KupgradeError("no console", text)

    machine = a_machine(tmp_path)
    machine.type, machine.reset = refuse, reset.set
    told = Told.now(machine)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "fault"))
        listener.listen()
        fault_port.watch(tmp_path, machine, lambda text: None)
        with listener.accept()[0] as guest:
            guest.sendall(b"kill-agent dump intent\npower-cut freeze effect\n")
            assert reset.wait(5.0)
    assert told.lost_since(machine) == ("kill-agent dump intent",)
    assert Told.now(machine).lost_since(machine) == ()


class Slow:
    """A link to a host in which the workload never listens."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []

    def write(self, *words: Any) -> None: ...

    def run(self, words: list[str], timeout: float) -> Completed:
        self.asked.append((words[-1], timeout))
        return Completed(1, "", "") if "7070" in words[-1] else Completed(0, "", "")


@pytest.mark.parametrize("memory", [64, 16384])
def test_a_large_workload_is_given_the_time_that_its_memory_takes(memory: int) -> None:
    """128 MiB take a second without emulation, and twenty with it."""
    least, link = memory * 20 / 128, Slow()
    asked: Any = link
    with pytest.raises(KupgradeError):
        inside.prepare(asked, Options(memory=memory))
    script, timeout = next(each for each in link.asked if "7070" in each[0])
    tries = re.search(r"seq (\d+)", script)
    assert tries is not None and 0.2 * int(tries[1]) >= least and timeout >= least
    assert inside.memory_patience(Options(memory=memory)) >= least

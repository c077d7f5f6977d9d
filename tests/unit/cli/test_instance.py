"""kupgrade instance: started, listed, its log printed, stopped; refused while an upgrade is open, and the other way."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.core.fold import fold
from kupgrade.core.instance_standing import stands
from kupgrade.errors import KupgradeError, RefusedError
from kupgrade.executor import Loop, advance
from kupgrade.kernel.printk import Line
from kupgrade.model.ids import UpgradeId
from kupgrade.model.instance import Life, Ran, Seen, Wish
from kupgrade.model.machine import CpuSet
from kupgrade.model.plan import Plan
from kupgrade.model.record import Now, State
from kupgrade.statedir import StateDirectory
from tests.fakes.beside import FakeBeside
from tests.fakes.drive import FakeClock
from tests.steps.test_instance import instance_plan, left
from tests.unit.cli.conftest import OLD_BOOT

START = ("instance", "start", "rt", "--kernel", "6.13.0-rt")


@dataclass
class Machine:
    """A keeper that works in this process, on fakes, as far as it comes."""

    host: Any
    beside: FakeBeside = field(default_factory=FakeBeside)
    wishes: list[Wish] = field(default_factory=list)
    works: bool = True
    seen: Seen = field(default_factory=lambda: Seen(Life.ALIVE, 0.02))

    def plan(self, policy: Any, facts: Any, wish: Wish, root: Path) -> Plan:
        self.wishes.append(wish)
        upgrade = UpgradeId(f"20261121-041503-{len(self.wishes):06}")
        return dataclasses.replace(instance_plan(wish.initrd), upgrade=upgrade, boot_id=OLD_BOOT)

    def keeper(self, name: str, root: Path) -> bool:
        if self.works:
            self.keep(name, root)
        return True

    def keep(self, name: str, root: Path) -> State:
        states = StateDirectory(root).instance(name)
        journal = states.open_current()
        assert journal is not None
        request = root / f"run/kupgrade/instances/{name}/stop"
        loop = Loop(
            journal, SimpleNamespace(beside=self.beside), lambda _s: Now(OLD_BOOT, "6.12.48", None), FakeClock(),
            interrupted=lambda: request.read_text().strip() if request.exists() else "",
        )  # fmt: skip
        try:
            state = advance(loop)
            if state.over:
                states.finish(state.plan.upgrade)
                request.unlink(missing_ok=True)
            return state
        finally:
            journal.close()


@pytest.fixture
def machine(host: Any) -> Machine:
    made = Machine(host)
    (host.root / "run/systemd/system").mkdir(parents=True)
    host.change(
        plan_instance=made.plan, start_keeper=made.keeper, keep=made.keep, look=lambda state, name, root: made.seen,
        read_log=lambda state, root: (Line(0, 0.0, 5, "Linux version 6.13.0-rt"), Line(1, 0.5, 6, "a\nb")),
    )  # fmt: skip
    return made


def test_it_is_started_listed_read_and_stopped(host: Any, machine: Machine) -> None:
    """The whole life, as text: progress, the list, the log, and everything as before."""
    result = host.call(*START, "--cpus", "2", "--memory", "512", "--append", "threadirqs", "--yes")
    assert result.exit_code == 0, result.output
    assert "rt runs 6.13.0-rt." in result.output and "[5/5]" in result.output
    assert machine.wishes == [Wish("rt", "6.13.0-rt", "", 2, 512 << 20, "threadirqs")]
    listing = host.call("instance", "list")
    assert "rt  alive" in listing.output and "CPU 2-3" in listing.output
    assert "[    0.500000] a\n[    0.500000] b" in host.call("instance", "console", "rt").output
    assert "5 steps" in host.call("instance", "stop", "rt", "-n").output
    stopped = host.call("instance", "stop", "rt")
    assert (stopped.exit_code, left(machine.beside)) == (0, [])
    assert "There is no instance." in host.call("instance", "list").output
    assert host.call(*START, "--yes").exit_code == 0  # a second one, by the same name


def test_json_everywhere(host: Any, machine: Machine) -> None:
    """The plan, then events, then the result; one object a line in the list and the log."""
    lines, code = host.lines(*START)
    assert (code, lines[0]["engine"], lines[-1]["outcome"], lines[-1]["instance"]) == (0, "instance", "running", "rt")
    (found,), _ = host.lines("instance", "list")
    assert (found["format"], found["life"], found["cpus"]) == ("kupgrade.instance/1", "alive", "2-3")
    log, _ = host.lines("instance", "console", "rt")
    assert log[1] == {"format": "kupgrade.instance-log/1", "level": 6, "seconds": 0.5, "seq": 1, "text": "a\nb"}
    assert host.lines("instance", "stop", "rt")[0][-1]["outcome"] == "stopped"


def test_a_command_is_run_in_it(host: Any, machine: Machine) -> None:
    """What it said, with its status as success or failure; only while it runs."""
    words = ("instance", "console", "rt", "--run", "nproc")
    assert host.call(*words).exit_code == 3
    assert host.call(*START, "--yes").exit_code == 0
    host.change(run_command=lambda state, name, text, root: Ran(0, f"{name}: {text}\n"))
    result = host.call(*words)
    assert (result.exit_code, result.output) == (0, "rt: nproc\n")
    host.change(run_command=lambda state, name, text, root: Ran(3, "no"))
    (found,), code = host.lines(*words)
    assert (code, found) == (1, {"format": "kupgrade.instance-run/1", "status": 3, "said": "no"})
    assert "Would run" in host.call(*words, "-n").output


def test_the_status_names_it(host: Any, machine: Machine) -> None:
    """kupgrade status, of upgrades, says that one is there."""
    assert host.lines("status")[0][0]["instances"] == []
    assert host.call(*START, "--yes").exit_code == 0
    assert "Beside it: rt" in host.call("status").output


def test_a_failed_start_takes_everything_back(host: Any, machine: Machine) -> None:
    """No hello: exit 1, the reason, all as before, the name free."""
    machine.beside.silent = True
    lines, code = host.lines(*START)
    assert (code, lines[-1]["outcome"]) == (1, "failed")
    assert "did not answer" in lines[-1]["reason"]
    assert left(machine.beside) == []
    assert host.lines("instance", "list") == ([], 0)


def test_half_a_start_is_found_and_taken_back(host: Any, machine: Machine) -> None:
    """The keeper was killed with the machine half taken, and nobody goes on: listed, and stopped."""

    def kill(label: str) -> None:
        if label == "offline block 29":
            raise KeyboardInterrupt

    machine.beside.tick = kill
    assert host.call(*START, "--yes").exit_code == 130
    machine.beside.tick = lambda label: None
    (found,), _ = host.lines("instance", "list")
    assert found["life"] == "half-started"
    assert host.call("instance", "console", "rt").exit_code == 3
    assert host.call("instance", "stop", "rt").exit_code == 0
    assert left(machine.beside) == []


def test_instances_and_upgrades_exclude_each_other(host: Any, machine: Machine) -> None:
    """One at a time, in both directions, and one instance at a time: exit 75 with what to do."""
    assert host.call(*START, "--yes").exit_code == 0
    for words in (START, ("instance", "start", "other", "--kernel", "x"), ("plan",), ("apply", "--yes")):
        result = host.call(*words)
        assert result.exit_code == 75, words
        assert "kupgrade instance stop rt" in result.output
    assert host.call("instance", "stop", "rt").exit_code == 0
    host.open()
    result = host.call(*START)
    assert (result.exit_code, len(machine.wishes)) == (75, 1)
    assert "kupgrade status" in result.output


def test_an_upgrade_that_begins_meanwhile_is_seen_under_the_lock(host: Any, machine: Machine) -> None:
    """What the plan was made for may be gone when it begins: begin asks again."""
    states = host.composed.state
    states.begin_instance("rt", machine.plan(None, None, Wish("rt", "x"), host.root)).close()
    with pytest.raises(KupgradeError, match="The instance rt is there"):
        states.begin(host.plan)
    other = dataclasses.replace(host.plan, upgrade=UpgradeId("20261121-041503-000077"))
    with pytest.raises(KupgradeError, match="The instance rt is there"):
        states.begin_instance("two", other)
    assert states.open_instances() == ("rt",)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("instance", "start", "rt"), 2),
        ((*START, "--cpus", "0"), 2),
        ((*START, "--cpus", "x-y"), 2),
        ((*START, "--memory", "-1"), 2),
        (("instance", "start", "../rt", "--kernel", "x"), 2),
        (("instance", "stop", "rt"), 3),
        (("instance", "console", "rt"), 3),
        (("instance", "stop", "a/b"), 2),
        (("instance", "dance"), 2),
    ],
)
def test_what_makes_no_sense_touches_nothing(host: Any, machine: Machine, words: tuple[str, ...], code: int) -> None:
    """Usage errors and names of nothing, with an object under --json."""
    before = host.snapshot()
    (error,), found = host.lines(*words)
    assert (found, error["code"]) == (code, code)
    assert host.snapshot() == before


def test_a_dry_run_touches_nothing(host: Any, machine: Machine) -> None:
    """The plan is shown, and that is all."""
    before = host.snapshot()
    result = host.call(*START, "-n", "--cpus", "3-3")
    assert result.exit_code == 0 and "nothing was touched" in result.output
    assert machine.wishes[0].cpus == CpuSet.of(3)
    assert host.snapshot() == before


def test_only_root_may(host: Any, machine: Machine) -> None:
    """Every verb says so."""
    host.change(euid=lambda: 1000)
    for words in (START, ("instance", "list"), ("instance", "stop", "rt"), ("instance", "console", "rt")):
        assert host.call(*words).exit_code == 3


def test_without_systemd_nothing_is_begun(host: Any, machine: Machine) -> None:
    """Nobody could hold the guard: refused before anything is taken."""
    (host.root / "run/systemd/system").rmdir()
    result = host.call(*START)
    assert result.exit_code == 3 and "systemd does not run" in result.output
    assert host.composed.state.open_instances() == ()


def test_a_service_that_does_not_start_leaves_nothing(host: Any, machine: Machine) -> None:
    """What was begun is closed again here."""

    def fail(name: str, root: Path) -> bool:
        raise RefusedError("systemctl failed")

    host.change(start_keeper=fail)
    assert host.call(*START).exit_code == 3
    assert host.composed.state.open_instances() == ()
    assert left(machine.beside) == []


def test_one_that_needs_a_person_can_be_abandoned(host: Any, machine: Machine) -> None:
    """Undoing keeps failing: stop exits with 5; --abandon closes it without touching the machine."""
    assert host.call(*START, "--yes").exit_code == 0
    assert host.call("instance", "stop", "rt", "--abandon").exit_code == 3

    def refuse(label: str) -> None:
        if label.startswith("online block"):
            raise KupgradeError("EBUSY")

    machine.beside.tick = refuse
    lines, code = host.lines("instance", "stop", "rt")
    assert (code, lines[-1]["outcome"]) == (5, "hands-off")
    assert host.lines("instance", "list")[0][0]["life"] == "hands-off"
    assert host.call("instance", "stop", "rt").exit_code == 5
    assert host.call("instance", "stop", "rt", "--abandon").exit_code == 0
    assert host.composed.state.open_instances() == ()


def test_following_the_log_ends_with_the_instance(host: Any, machine: Machine) -> None:
    """Each line once, until it is stopped."""
    assert host.call(*START, "--yes").exit_code == 0
    turns: list[float] = []

    def sleep(seconds: float) -> None:
        turns.append(seconds)
        if len(turns) == 3:
            (host.root / "run/kupgrade/instances/rt").mkdir(parents=True, exist_ok=True)
            (host.root / "run/kupgrade/instances/rt/stop").write_text("x")
            machine.keep("rt", host.root)

    host.change(sleep=sleep)
    result = host.call("instance", "console", "rt", "--follow")
    assert (result.exit_code, result.output.count("Linux version")) == (0, 1)


def test_a_journal_outlives_its_instance(host: Any, machine: Machine) -> None:
    """The evidence of each run stays below instances/NAME."""
    assert host.call(*START, "--yes").exit_code == 0
    assert host.call("instance", "stop", "rt").exit_code == 0
    (folder,) = (host.root / "var/lib/kupgrade/instances/rt/upgrades").iterdir()
    records = host.composed.state.instance("rt").read(UpgradeId(folder.name))
    assert (folder / "plan.json").exists() and not stands(fold(records))
    assert json.loads((folder / "plan.json").read_text())["engine"] == "instance"

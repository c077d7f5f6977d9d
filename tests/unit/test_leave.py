"""The policy asked once more right before the freeze, on the machine; and what a boot's agent leaves to the worker."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kupgrade import resume
from kupgrade.core.fold import fold
from kupgrade.errors import BadInputError, ExitCode, KupgradeError, NotNowError, RefusedError
from kupgrade.host import command, logind
from kupgrade.host.command import Completed
from kupgrade.machine import host, leave, passing_on
from kupgrade.machine.health import RealHealth
from kupgrade.machine.places import Places
from kupgrade.model.record import Now, Outcome, Record, RecordKind, State
from kupgrade.model.schedule import Terms
from kupgrade.standby import carry_on
from tests.fakes.drive import plan as kexec_plan
from tests.unit.conftest import NEW_BOOT, a_plan, some_records

PLAN = a_plan()


def policy(root: Path, text: str) -> None:
    directory = root / "etc/kupgrade/policy.d"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "10.toml").write_text(text)


def other_time() -> str:
    """A window that is shut now: it opened three hours ago, for an hour."""
    then = time.gmtime(time.time() - 3 * 3600)
    return f'[[window]]\nstart = "{then.tm_hour:02}:{then.tm_min:02}"\nlength = "1h"\n'


def test_the_gate_asks_last_and_an_error_means_no(tmp_path: Path) -> None:
    """A no of the policy is the gate's no; nothing was changed for it."""

    def no() -> None:
        raise NotNowError("The policy says not now", "no window is open")

    health = RealHealth(Places(tmp_path), checkpoints=None, leave=no)  # type: ignore[arg-type]
    store: Any = next(each.params["store"] for each in kexec_plan().steps if "store" in each.params)
    from kupgrade.model.codec import decode
    from kupgrade.model.workload import Store

    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(NotNowError):
        health.gate((), replace(decode(Store, dict(store)), path=str(folder)), ())


def test_the_agent_of_a_boot_imports_none_of_it() -> None:
    """Import time is blackout: time zones, TOML and logind are for the old kernel, which has time."""
    code = "import sys, kupgrade.resume; print(*sorted({'zoneinfo', 'tomllib', 'kupgrade.policy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_policy_no_limits(tmp_path: Path) -> None:
    """Without files the defaults hold: nothing forbids it."""
    leave.require(PLAN, Terms(), tmp_path)


@pytest.mark.parametrize(
    ("text", "terms", "error"),
    [
        ('[kernels]\nblock = ["6.12.57"]\n', Terms(), RefusedError),
        ('[kernels]\nblock = ["6.12.57"]\n', Terms(at_once=True), RefusedError),
        ("deadline = no", Terms(), BadInputError),
        ("deadline = no", Terms(at_once=True), BadInputError),
        (other_time(), Terms(), NotNowError),
        (other_time(), Terms(automatic=True), NotNowError),
        (other_time(), Terms(at_once=True), None),
    ],
)
def test_the_policy_of_the_moment_counts(
    tmp_path: Path, text: str, terms: Terms, error: type[KupgradeError] | None
) -> None:
    """Not that of the day on which the plan was made; one that cannot be read is a no, too."""
    policy(tmp_path, text)
    if error is None:
        leave.require(PLAN, terms, tmp_path)
    else:
        with pytest.raises(error):
            leave.require(PLAN, terms, tmp_path)


def test_each_question_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown users do not make inhibitors unknown; the reason is told."""

    def fail(root: Path) -> tuple[str, ...]:
        raise KupgradeError("busctl failed", "no bus")

    monkeypatch.setattr(logind, "users", fail)
    found = leave.hindrances(tmp_path)
    assert (found.inhibitors, found.users, found.why) == ((), None, "busctl failed: no bus")
    leave.require(PLAN, Terms(), tmp_path)
    with pytest.raises(NotNowError, match="unknown: busctl failed"):
        leave.require(PLAN, Terms(automatic=True), tmp_path)


def serving(*, soaks: bool) -> State:
    """Committed in the new kernel; `soaks`: the soak time comes next, else it is over."""
    return fold(serving_records(soaks=soaks))


def serving_records(*, soaks: bool) -> tuple[Record, ...]:
    from tests.unit.conftest import step

    plan = a_plan()
    serve = replace(plan.phases[-1], steps=(step("thaw", irreversible=True), step("soak"), step("mark-good")))
    plan = replace(plan, phases=(*plan.phases[:-1], serve))
    events: list[tuple[Any, ...]] = []
    for index in range(4):
        events += [(RecordKind.STARTED, index, {}), (RecordKind.DONE, index, {})]
    events += [(RecordKind.STARTED, 4, {"epoch": 1}), (RecordKind.CROSSED, None, {}, NEW_BOOT)]
    for index in (5, 6) if soaks else (5, 6, 7):
        events += [(RecordKind.STARTED, index, {}, NEW_BOOT), (RecordKind.DONE, index, {}, NEW_BOOT)]
        if index == 5:
            events.append((RecordKind.COMMITTED, None, {}, NEW_BOOT))
    return some_records(plan, *events)


@pytest.mark.parametrize("soaks", [True, False])
def test_only_a_soak_time_is_left_to_the_worker(monkeypatch: pytest.MonkeyPatch, soaks: bool) -> None:
    """Every other step is the agent's own."""
    monkeypatch.setattr(passing_on, "observe_now", lambda state, places: Now(NEW_BOOT, "6.12.57", None))
    assert passing_on.left(serving(soaks=soaks)) is soaks


def test_an_agent_passes_a_soak_time_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The boot's agent ends well and starts the worker, with the journal let go; the worker itself soaks."""
    deeds: list[str] = []

    class Journal:
        records = serving_records(soaks=True)[:1]

        def close(self) -> None:
            deeds.append("closed")

    def run(journal: Any, *, root: Path, watch: Any, leaves: Any = ()) -> State:
        deeds.append(f"leaves {sorted(leaves)}")
        return serving(soaks=True)

    monkeypatch.setattr(host, "await_predecessors", lambda patience: None)
    monkeypatch.setattr(host, "run", run)
    monkeypatch.setattr(passing_on, "observe_now", lambda state, places: Now(NEW_BOOT, "6.12.57", None))
    monkeypatch.setattr(resume.StateDirectory, "open_current", lambda self, patience: Journal())
    monkeypatch.setattr(passing_on, "pass_on", lambda: deeds.append("passed on"))
    assert resume.main([]) == ExitCode.DONE
    assert deeds == ["leaves ['soak']", "closed", "passed on"]
    deeds.clear()
    assert resume.main(["--worker", "--json"]) == ExitCode.DONE
    assert deeds == ["leaves []"]


def test_a_worker_that_cannot_be_started_fails_nothing() -> None:
    """The timer looks after it later."""

    def fail() -> None:
        raise KupgradeError("systemctl failed")

    passing_on.pass_on(fail)


@pytest.mark.parametrize(
    ("noted", "looks"), [(("7.3.json",), 1), ((), 0), (None, 0)], ids=["one was noted", "none was", "nobody ever did"]
)
def test_after_a_commit_what_packages_noted_is_looked_at(
    tmp_path: Path, noted: tuple[str, ...] | None, looks: int
) -> None:
    """The kernel that runs now is not to wait until a timer finds that it does; a failure of that fails nothing."""
    places, seen = Places(tmp_path), []
    if noted is not None:
        places.noted.mkdir(parents=True)
        for name in noted:
            (places.noted / name).touch()

    def start() -> None:
        seen.append("looked")
        raise KupgradeError("systemctl failed")

    passing_on.look_again(places, start)
    assert len(seen) == looks


@pytest.mark.parametrize("enabled", [True, False])
def test_an_administrator_who_switched_the_looks_off_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    """Another upgrade could begin by one."""
    asked: list[list[str]] = []

    def run(argv: list[str], **_: object) -> Completed:
        asked.append(argv[1:])
        return Completed(0 if enabled else 1, "", "")

    monkeypatch.setattr(command, "run", run)
    places = Places(tmp_path)
    places.noted.mkdir(parents=True)
    (places.noted / "7.3.json").touch()
    passing_on.look_again(places)
    assert asked[0] == ["is-enabled", "--quiet", "kupgrade-request.path"]
    assert asked[1:] == ([["start", "--no-block", "kupgrade-request.service"]] if enabled else [])


@pytest.mark.parametrize("committed", [True, False])
def test_the_agent_has_it_looked_at_when_all_is_over(monkeypatch: pytest.MonkeyPatch, committed: bool) -> None:
    """With the journal let go; after a rollback there is nothing that would run now."""
    deeds: list[str] = []

    class Journal:
        records = serving_records(soaks=False)[:1]

        def close(self) -> None:
            deeds.append("closed")

    state = replace(serving(soaks=False), committed=committed, outcome=Outcome.COMMITTED)
    monkeypatch.setattr(host, "await_predecessors", lambda patience: None)
    monkeypatch.setattr(host, "run", lambda *_, **__: state)
    monkeypatch.setattr(host, "forget_rollback_request", lambda: None)
    monkeypatch.setattr(resume, "_tell_metrics", lambda: None)
    monkeypatch.setattr(resume.StateDirectory, "open_current", lambda self, patience: Journal())
    monkeypatch.setattr(resume.StateDirectory, "finish", lambda self, upgrade: deeds.append("finished"))
    monkeypatch.setattr(passing_on, "look_again", lambda places: deeds.append("looked"))
    assert resume.main([]) == ExitCode.DONE
    assert deeds == ["finished", "closed", *["looked"] * committed]


def test_a_kernel_that_came_up_beside_another_passes_it_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old kernel has left by then: the journal and the lock are let go, and the worker of this system soaks."""
    deeds: list[str] = []

    class Journal:
        def close(self) -> None:
            deeds.append("closed")

    def run(journal: Any, *, root: Path, watch: Any, leaves: Any) -> State:
        deeds.append(f"leaves {sorted(leaves)}")
        return serving(soaks=True)

    places = Places(tmp_path)
    places.run.mkdir(parents=True)
    monkeypatch.setattr(carry_on, "Places", lambda: places)
    monkeypatch.setattr(host, "run", run)
    monkeypatch.setattr(passing_on, "observe_now", lambda state, places: Now(NEW_BOOT, "6.12.57", None))
    monkeypatch.setattr(carry_on.StateDirectory, "open_current", lambda self: Journal())
    monkeypatch.setattr(carry_on.standing, "put", lambda places, stage: deeds.append(stage.value))
    monkeypatch.setattr(passing_on, "pass_on", lambda: deeds.append("passed on"))
    assert carry_on.run() == ExitCode.DONE
    assert deeds == ["leaves ['soak']", "over", "closed", "passed on"]

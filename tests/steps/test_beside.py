"""A kernel beside this one, killed at every point: what was taken always comes back, and nothing runs twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from kupgrade.executor import Loop, advance, start
from kupgrade.model.plan import Phase, Side
from kupgrade.model.record import Now, Outcome, State
from kupgrade.steps.base import spec
from kupgrade.steps.beside import BuildStandby, LoadSpawnModule, SpawnKernel, TakeCpus, TakeMemory
from tests.fakes.beside import BLOCK, FakeBeside
from tests.fakes.drive import UPGRADE, FakeClock, plan
from tests.fakes.endings import Kill
from tests.fakes.logs import MemoryLog

SPAWN = SpawnKernel("6.13.0-new", "/boot/vmlinuz", "/staged/standby", str(UPGRADE), 1, (3, 2), 4 * BLOCK, BLOCK, "", 60)
STEPS = (
    LoadSpawnModule(),
    TakeCpus((3, 2)),
    TakeMemory(4 * BLOCK),
    BuildStandby("6.13.0-new", "/staged/standby", ("virtio_net",)),
    SPAWN,
)
PLAN = replace(plan(), phases=(Phase("staging", Side.OLD, tuple(spec(step) for step in STEPS)),))


@dataclass
class Scenario:
    """One run: the tool is killed at the ticks in `kills`, started again each time, and asked to go back at the end."""

    beside: FakeBeside
    kills: Mapping[int, str] = field(default_factory=dict)
    ticks: list[str] = field(default_factory=list)

    def tick(self, label: str) -> None:
        self.ticks.append(label)
        if len(self.ticks) in self.kills:
            raise Kill

    def run(self) -> State:
        self.beside.tick = self.tick
        log = MemoryLog()
        loop = Loop(
            log=log,
            host=SimpleNamespace(beside=self.beside),
            now=lambda _state: Now(PLAN.boot_id, PLAN.old_release, None),
            clock=FakeClock(),
            faults=lambda step, moment: self.tick(f"{step}:{moment}"),
            # The wish to go back comes when the new kernel stands: what follows the staging is not asked here.
            interrupted=lambda: "enough" if len(self.beside.running) == 2 else "",
        )
        start(loop, PLAN, PLAN.boot_id)
        for _ in range(len(self.kills) + 1):
            try:
                return advance(loop)
            except Kill:
                continue
        raise AssertionError("killed more often than planned")


def as_before(beside: FakeBeside) -> list[str]:
    """What is not as it was before the upgrade; what must never happen at all."""
    fresh = FakeBeside()
    left = [
        name
        for name in ("loaded", "online", "blocks", "built", "running", "secrets")
        if getattr(beside, name) != getattr(fresh, name)
    ]
    return left + beside.violations


def test_a_kernel_is_started_beside_and_everything_comes_back() -> None:
    """Without a fault: it ran, and after the rollback CPUs, memory, module and files are as before."""
    scenario = Scenario(FakeBeside())
    state = scenario.run()
    assert state.outcome is Outcome.ROLLED_BACK
    assert "start 6" in scenario.ticks and "start 4" in scenario.ticks
    assert as_before(scenario.beside) == []


@pytest.mark.parametrize(
    "changes", [{}, {"silent": True}, {"release": "6.13.1-other"}], ids=["good", "silent", "other"]
)
def test_a_kill_at_any_point_loses_no_cpu_and_no_memory(changes: dict[str, bool | str]) -> None:
    """One kill, and two, at every tick: it always ends rolled back with everything given back."""
    whole = Scenario(FakeBeside(**changes))  # type: ignore[arg-type]
    assert whole.run().outcome is Outcome.ROLLED_BACK
    assert as_before(whole.beside) == []
    count = len(whole.ticks)
    pairs = [(first, second) for first in range(1, count + 1) for second in range(first + 1, count + 12, 3)]
    for kills in [*((at,) for at in range(1, count + 1)), *pairs]:
        scenario = Scenario(FakeBeside(**changes), dict.fromkeys(kills, "kill"))  # type: ignore[arg-type]
        state = scenario.run()
        assert state.outcome is Outcome.ROLLED_BACK, (kills, scenario.ticks, state.hands_off)
        assert as_before(scenario.beside) == [], (kills, scenario.ticks)


def test_what_was_offline_before_stays_offline() -> None:
    """An administrator's offline CPU is taken as it is and not brought online afterwards."""
    beside = FakeBeside(online={0, 1, 3})
    scenario = Scenario(beside)
    assert scenario.run().outcome is Outcome.ROLLED_BACK
    assert beside.online == {0, 1, 3}


def test_a_loaded_module_is_left_loaded() -> None:
    """kspawn was there before; somebody may want it."""
    beside = FakeBeside(loaded=True)
    assert Scenario(beside).run().outcome is Outcome.ROLLED_BACK
    assert beside.loaded


def test_too_little_memory_takes_everything_back() -> None:
    """No run that is long enough: nothing is started, and every block comes back."""
    beside = FakeBeside(refusing=frozenset(range(0, 32, 3)))
    assert Scenario(beside).run().outcome is Outcome.ROLLED_BACK
    assert as_before(beside) == []

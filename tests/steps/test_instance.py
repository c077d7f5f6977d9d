"""An instance's plan in the one loop, killed at every point: it stands, or everything comes back; never neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from kupgrade.core.fold import fold
from kupgrade.core.instance_choice import InstanceChoice
from kupgrade.core.instance_standing import listed, listed_text, stands
from kupgrade.core.recovery import Action, decide
from kupgrade.engines.instance import InstanceOrder, phases
from kupgrade.executor import Loop, advance, start
from kupgrade.model.instance import ENGINE, Life, Seen, Wish
from kupgrade.model.plan import Plan
from kupgrade.model.policy import SpawnOptions
from kupgrade.model.record import Now, Outcome, State
from tests.fakes.beside import BLOCK, FakeBeside
from tests.fakes.drive import UPGRADE, FakeClock, plan
from tests.fakes.endings import Kill
from tests.fakes.logs import MemoryLog

RELEASE = "6.13.0-rt"


def instance_plan(initrd: str = "") -> Plan:
    order = InstanceOrder(
        str(UPGRADE), Wish("rt", RELEASE, initrd), RELEASE, "/boot/vmlinuz", "/staged/standby",
        InstanceChoice((3, 2), 4 * BLOCK, BLOCK), SpawnOptions(),
    )  # fmt: skip
    return replace(plan(), engine=ENGINE, store="none", new_release=RELEASE, phases=phases(order))


@dataclass
class Scenario:
    """Keepers come and go at the ticks in `kills`; once it stands the wish to stop it comes, unless `stays`."""

    beside: FakeBeside = field(default_factory=FakeBeside)
    plan: Plan = field(default_factory=instance_plan)
    kills: Mapping[int, str] = field(default_factory=dict)
    stays: bool = False
    boot: str = ""
    log: MemoryLog = field(default_factory=MemoryLog)
    ticks: list[str] = field(default_factory=list)
    stood: bool = False

    def tick(self, label: str) -> None:
        self.ticks.append(label)
        if len(self.ticks) in self.kills:
            raise Kill

    def keeper(self) -> State:
        """One keeper's life: the loop until it stands; then the wish, and the loop once more."""
        loop = Loop(
            log=self.log,
            host=SimpleNamespace(beside=self.beside),
            now=lambda _state: Now(self.boot or self.plan.boot_id, self.plan.old_release, None),
            clock=FakeClock(),
            faults=lambda step, moment: self.tick(f"{step}:{moment}"),
            interrupted=lambda: "the operator asked for it" if self.stood and not self.stays else "",
        )
        state = advance(loop)
        if stands(state):
            self.stood = True
            state = advance(loop)
        return state

    def run(self) -> State:
        self.beside.tick = self.tick
        if not self.log.records:
            start(Loop(self.log, None, lambda _s: Now("", "", None), FakeClock()), self.plan, self.plan.boot_id)
        for _ in range(len(self.kills) + 1):
            try:
                return self.keeper()
            except Kill:
                continue
        raise AssertionError("killed more often than planned")


def left(beside: FakeBeside) -> list[str]:
    """What is not as it was before; what must never happen at all."""
    fresh = FakeBeside()
    names = ("loaded", "online", "blocks", "built", "running", "secrets")
    return [name for name in names if getattr(beside, name) != getattr(fresh, name)] + beside.violations


@pytest.mark.parametrize("initrd", ["", "/boot/own.img"])
def test_it_stands_until_its_end_is_wished_and_leaves_nothing(initrd: str) -> None:
    """Every step done it stands, uncommitted; every further keeper finds it so; the wish undoes all of it."""
    scenario = Scenario(plan=instance_plan(initrd), stays=True)
    for _ in range(5):  # however often its keeper is started again
        state = scenario.run()
        assert stands(state) and not state.committed
        assert set(scenario.beside.running) == {4, 6}
    assert decide(state, Now(state.boot_id, "", None)).action is Action.STAND
    scenario.stays = False
    state = scenario.run()
    assert state.outcome is Outcome.ROLLED_BACK and state.undo_by == "operator"
    assert left(scenario.beside) == []


@pytest.mark.parametrize("initrd", ["", "/boot/own.img"])
@pytest.mark.parametrize("changes", [{}, {"silent": True}, {"loaded": True}], ids=["good", "silent", "loaded"])
def test_a_kill_at_any_point_loses_no_cpu_and_no_memory(changes: dict[str, bool], initrd: str) -> None:
    """One kill, and two, at every tick of start and stop: it ends with everything given back."""
    made = instance_plan(initrd)
    whole = Scenario(FakeBeside(**changes), made)  # type: ignore[arg-type]
    assert whole.run().outcome is Outcome.ROLLED_BACK
    assert whole.stood is not whole.beside.silent
    count = len(whole.ticks)
    pairs = [(first, second) for first in range(1, count + 1) for second in range(first + 1, count + 12, 5)]
    for kills in [*((at,) for at in range(1, count + 1)), *pairs]:
        scenario = Scenario(FakeBeside(**changes), made, dict.fromkeys(kills, "kill"))  # type: ignore[arg-type]
        state = scenario.run()
        assert state.outcome is Outcome.ROLLED_BACK, (kills, scenario.ticks, state.hands_off)
        kept = ["loaded"] if changes.get("loaded") else []
        assert left(scenario.beside) == kept, (kills, scenario.ticks)


def test_half_a_start_is_told_and_taken_back() -> None:
    """Killed in the middle with nobody to go on: the list says half-started; the wish to stop it takes it back."""
    count = len(Scenario(stays=True).run().steps)
    scenario = Scenario(kills={1 + 3 * count: "kill"})
    scenario.beside.tick = scenario.tick
    start(Loop(scenario.log, None, lambda _s: Now("", "", None), FakeClock()), scenario.plan, scenario.plan.boot_id)
    with pytest.raises(Kill):
        scenario.keeper()
    records = scenario.log.records
    state = fold(records)
    here = Now(state.boot_id, "", None)
    assert listed("rt", records, state, here, None, None).life is Life.HALF_STARTED
    assert listed("rt", records, state, here, None, 77).life is Life.STARTING
    assert "kupgrade instance stop rt" in listed_text(listed("rt", records, state, here, None, None), 0.0)
    scenario.stood = True  # the wish is there
    assert scenario.run().outcome is Outcome.ROLLED_BACK
    assert left(scenario.beside) == []


def test_a_restart_of_the_machine_ends_it() -> None:
    """After a restart it is gone; stopping it removes what lies on the disk and touches no CPU."""
    scenario = Scenario(stays=True)
    state = scenario.run()
    there = Now("another-boot", "", None)
    assert listed("rt", scenario.log.records, state, there, None, None).life is Life.GONE
    scenario.beside = FakeBeside(built={"/staged/standby"})
    scenario.boot = "another-boot"
    ticks = len(scenario.ticks)
    assert scenario.run().outcome is Outcome.ROLLED_BACK
    assert left(scenario.beside) == []
    assert not [each for each in scenario.ticks[ticks:] if each.startswith(("online", "stop", "offline"))]


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Seen(Life.ALIVE, 0.02), ("alive", "0.02 s ago")),
        (Seen(Life.SILENT, 12.0, "no heartbeat"), ("silent", "12 s ago", "no heartbeat")),
        (Seen(Life.PANICKED, None, "its panic flag says 0x1"), ("panicked", "0x1", "take it back")),
        (Seen(Life.UNKNOWN, None, "no agent is in it"), ("unknown", "no agent")),
    ],
)
def test_the_list_says_how_it_is(seen: Seen, words: tuple[str, ...]) -> None:
    """Life, release, CPUs, memory, since when, age of the heartbeat; and that nobody holds the guard."""
    scenario = Scenario(stays=True)
    state = scenario.run()
    found = listed("rt", scenario.log.records, state, Now(state.boot_id, "", None), seen, 7)
    assert (found.cpus, found.memory, found.release, found.agent) == ("2-3", 4 * BLOCK, RELEASE, True)
    assert found.since is not None
    text = listed_text(found, found.since + 60.0)
    for word in (*words, "CPU 2-3", "512 MiB", RELEASE):
        assert word in text
    assert "guard" not in text
    assert "nobody holds its guard" in listed_text(replace(found, keeper=None), found.since)

"""Any sequence of faults and boots, found by hypothesis: the machine goes on tick by tick until it is at rest."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.crash.matrix import BEHAVIOURS
from tests.fakes.drive import begin, one_life
from tests.fakes.endings import Behaviour
from tests.fakes.judge import Run, authority, judge

MAX_FAULTS = 6  # more would only use up the retries that are bounded on purpose


class Upgrade(RuleBasedStateMachine):
    """One upgrade; each rule is one life of the tool, ended by a fault or by the end of the upgrade."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None
        self.struck = 0
        self.epoch = 0

    @initialize(behaviour=st.sampled_from(BEHAVIOURS))
    def host(self, behaviour: Behaviour) -> None:
        self.run = begin(behaviour, {})

    def _live(self, ticks: int, kind: str) -> None:
        assert self.run is not None
        machine = self.run.machine
        machine.faults = {len(machine.trace) + ticks: kind} if kind else {}
        one_life(self.run)

    @property
    def _open(self) -> bool:
        return self.run is not None and self.run.state is None

    @precondition(lambda self: self._open and self.struck < MAX_FAULTS)
    @rule(ticks=st.integers(1, 200), kind=st.sampled_from(["kill", "cut", "cut"]))
    def strike(self, ticks: int, kind: str) -> None:
        """A fault after some ticks (or none, when this life is shorter)."""
        self.struck += 1
        self._live(ticks, kind)

    @precondition(lambda self: self._open)
    @rule(ticks=st.integers(1, 200))
    def ask_to_roll_back(self, ticks: int) -> None:
        """The operator wants back."""
        self._live(ticks, "rollback")

    @precondition(lambda self: self._open)
    @rule()
    def live_on(self) -> None:
        """A life without a fault."""
        self._live(0, "")

    @precondition(lambda self: self.run is not None and self.run.state is not None)
    @rule()
    def ask_again(self) -> None:
        """After the end nothing happens any more."""
        assert self.run is not None
        length = len(self.run.log.records)
        self._live(0, "")
        assert len(self.run.log.records) == length

    @invariant()
    def nothing_is_violated(self) -> None:
        if self.run is None:
            return
        problems = self.run.machine.violations + authority(self.run.log.records)
        assert not problems, self.run.report() + "\n" + "\n".join(problems)
        last = self.run.log.records[-1].epoch
        assert last >= self.epoch
        self.epoch = last

    def teardown(self) -> None:
        if self.run is None:
            return
        while self._open:
            self._live(0, "")
        if self.run.state is not None and self.run.state.hands_off and self.struck > 2:
            return  # bounded retries are used up: a person is the right answer
        judge(self.run)
        assert not self.run.problems, self.run.report()


Upgrade.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestUpgrade = Upgrade.TestCase
TestUpgrade.__doc__ = "Whatever strikes, and in whatever order, no invariant is violated and the upgrade ends."

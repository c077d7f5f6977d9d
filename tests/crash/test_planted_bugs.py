"""The crash tests are tested: each planted bug must violate an invariant somewhere in a reduced matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kupgrade import executor
from kupgrade.core import fold, kinds, recovery
from kupgrade.model.record import Verdict
from kupgrade.steps.bootentry import MarkGood, PinBootDefault
from kupgrade.steps.checkpoint import Dump, Restore
from kupgrade.steps.crossing import ArmWatchdog, Disarm, LoadKernel
from kupgrade.steps.health import ProbeWorkloads
from kupgrade.steps.hook import CallHooks
from kupgrade.steps.network import LockNetwork
from kupgrade.steps.services import HoldUnits
from kupgrade.steps.stopping import StartUnits, StopUnits
from kupgrade.steps.watchdogs import PauseWatchdogs, ResumeWatchdogs
from tests.crash.matrix import BEHAVIOURS, GOOD, trace
from tests.fakes.drive import play
from tests.fakes.endings import Behaviour
from tests.fakes.ports import Network

Patch = pytest.MonkeyPatch


def _thaw_before_withdraw(patch: Patch) -> None:
    original = Dump.undo

    def undo(self: Any, host: Any, before: Any, context: Any) -> None:
        if not context.same_boot:
            original(self, host, before, context)

    patch.setattr(Dump, "undo", undo)


def _effect_before_record(patch: Patch) -> None:
    original = executor._run

    def run(loop: Any, state: Any, now: Any, index: int) -> Any:
        if state.plan.steps[index].kind == "freeze":
            executor.load(state.plan.steps[index]).do(loop.host, None)
        return original(loop, state, now, index)

    patch.setattr(executor, "_run", run)


def _commit_after_thaw(patch: Patch) -> None:
    patch.setattr(recovery, "THAW", "unlock-network")


def _no_fence_of_the_epoch(patch: Patch) -> None:
    patch.setattr(executor, "replace", lambda state, **_: state)


def _second_before_image(patch: Patch) -> None:
    original = executor._run

    def run(loop: Any, state: Any, now: Any, index: int) -> Any:
        forgotten = dataclasses.replace(state.steps[index], before=None)
        steps = (*state.steps[:index], forgotten, *state.steps[index + 1 :])
        return original(loop, dataclasses.replace(state, steps=steps), now, index)

    patch.setattr(executor, "_run", run)
    patch.setattr(fold, "_first_before", lambda _old, record: record.data)


def _unlock_before_restore(patch: Patch) -> None:
    original = Restore.do

    def do(self: Any, host: Any, before: Any) -> None:
        host.network.unlock()
        original(self, host, before)

    patch.setattr(Restore, "do", do)


def _hold_forgotten(patch: Patch) -> None:
    patch.setattr(HoldUnits, "do", lambda *_: None)
    patch.setattr(HoldUnits, "verify", lambda *_: Verdict.DONE)


def _dead_images_restored(patch: Patch) -> None:
    for module in (recovery, executor):
        patch.setattr(module, "images_valid", lambda _state: True)


def _image_not_unloaded(patch: Patch) -> None:
    patch.setattr(LoadKernel, "undo", lambda *_: None)


def _wipe_before_commit(patch: Patch) -> None:
    original = Restore.do

    def do(self: Any, host: Any, before: Any) -> None:
        original(self, host, before)
        host.images.wipe(self.store)

    patch.setattr(Restore, "do", do)


def _lock_of_this_boot_only(patch: Patch) -> None:
    def lock(self: Any, _workloads: Any, *, both: bool) -> None:
        self.m.act("lock")
        self.m.lock = "both" if both else "input"

    patch.setattr(Network, "lock", lock)


def _freeze_without_lock(patch: Patch) -> None:
    patch.setattr(LockNetwork, "do", lambda *_: None)
    patch.setattr(LockNetwork, "verify", lambda *_: Verdict.DONE)


def _appended_bytes_stay(patch: Patch) -> None:
    def undo(self: Any, host: Any, _before: Any, context: Any) -> None:
        if context.in_new_kernel:
            for workload in self.workloads:
                host.health.pause(workload)

    patch.setattr(ProbeWorkloads, "undo", undo)


def _watchdog_counts_on(patch: Patch) -> None:
    patch.setattr(ArmWatchdog, "undo", lambda *_: None)


def _timer_counts_past_the_commit(patch: Patch) -> None:
    patch.setattr(Disarm, "do", lambda self, host, _before: host.crossing.set_panic_timeout(self.panic))
    patch.setattr(Disarm, "verify", lambda *_: Verdict.DONE)


def _disarmed_by_the_look_of_it(patch: Patch) -> None:
    patch.setattr(recovery, "REPEATED", kinds.REPEATED - {"disarm"})
    patch.setattr(Disarm, "verify", lambda *_: Verdict.DONE)


def _default_not_pinned(patch: Patch) -> None:
    patch.setattr(PinBootDefault, "do", lambda *_: {})
    patch.setattr(PinBootDefault, "verify", lambda *_: Verdict.DONE)


def _default_always_the_old_one(patch: Patch) -> None:
    patch.setattr(MarkGood, "do", lambda *_: {})
    patch.setattr(MarkGood, "verify", lambda *_: Verdict.DONE)


def _questions_not_asked_again(patch: Patch) -> None:
    patch.setattr(recovery, "REPEATED", frozenset())


def _new_default_on_the_old_release(patch: Patch) -> None:
    patch.setattr(recovery, "_pointless", lambda _state, _index: False)


def _commit_told_on_the_old_release(patch: Patch) -> None:
    patch.setattr(recovery, "makes_default", lambda spec: spec.kind == kinds.MARK_GOOD)


def _failure_after_commit_rolls_back(patch: Patch) -> None:
    patch.setattr(recovery, "MAX_FAILURES_AFTER_COMMIT", 0)


def _sealed_before_dumped(patch: Patch) -> None:
    original = Dump.do

    def do(self: Any, host: Any, before: Any) -> Any:
        host.images.seal(self.store, self.upgrade, (self.old_release, self.new_release))
        return original(self, host, before)

    patch.setattr(Dump, "do", do)


def _hooks_not_undone(patch: Patch) -> None:
    patch.setattr(CallHooks, "undo", lambda *_: None)


def _half_a_hook_counts(patch: Patch) -> None:
    patch.setattr(CallHooks, "verify", lambda *_: Verdict.DONE)


def _ends_with_its_boot(patch: Patch, kind: str) -> None:
    original = recovery._undo_applies

    def applies(state: Any, index: int, now: Any) -> bool:
        own = state.plan.steps[index].kind != kind or state.steps[index].boot_id == now.boot_id
        return own and original(state, index, now)

    patch.setattr(recovery, "_undo_applies", applies)


def _hooks_end_with_their_boot(patch: Patch) -> None:
    _ends_with_its_boot(patch, "call-hooks")


def _stopped_for_one_boot(patch: Patch) -> None:
    _ends_with_its_boot(patch, "stop-units")


def _stopped_and_not_kept_down(patch: Patch) -> None:
    patch.setattr(StopUnits, "do", lambda self, host, before: host.stopping.stop(self.orders, before.units))


def _never_started_again(patch: Patch) -> None:
    patch.setattr(StartUnits, "do", lambda *_: {})
    patch.setattr(StartUnits, "verify", lambda *_: Verdict.DONE)


def _stopped_by_the_look_of_it(patch: Patch) -> None:
    patch.setattr(StopUnits, "do", lambda *_: None)
    patch.setattr(StopUnits, "verify", lambda *_: Verdict.DONE)


def _watchdog_not_paused(patch: Patch) -> None:
    patch.setattr(PauseWatchdogs, "do", lambda *_: None)
    patch.setattr(PauseWatchdogs, "verify", lambda *_: Verdict.DONE)


def _watchdog_of_one_boot(patch: Patch) -> None:
    _ends_with_its_boot(patch, "pause-watchdogs")


def _watchdog_not_resumed(patch: Patch) -> None:
    patch.setattr(ResumeWatchdogs, "do", lambda *_: {})


# Each bug with the words in which it is noticed.
BUGS: tuple[tuple[Callable[[Patch], None], str], ...] = (
    (_thaw_before_withdraw, "beside a complete mark"),
    (_effect_before_record, "without its intent"),
    (_commit_after_thaw, "before the commit"),
    (_no_fence_of_the_epoch, "a claim in epoch 1 after 1"),
    (_second_before_image, "are kept down"),
    (_unlock_before_restore, "RST"),
    (_hold_forgotten, "lost its memory"),
    (_dead_images_restored, "goes back"),
    (_image_not_unloaded, "left behind: kexec image"),
    (_wipe_before_commit, "lost its memory"),
    (_lock_of_this_boot_only, "RST"),
    (_freeze_without_lock, "while packets come in"),
    (_appended_bytes_stay, "goes back"),
    (_watchdog_counts_on, "left behind: watchdog"),
    (_timer_counts_past_the_commit, "timer armed"),
    (_disarmed_by_the_look_of_it, "timer armed"),
    (_default_not_pinned, "a person was asked without need"),
    (_default_always_the_old_one, "but the boot default is"),
    (_questions_not_asked_again, "the gate never said yes"),
    (_new_default_on_the_old_release, "but the boot default is"),
    (_commit_told_on_the_old_release, "is not the default"),
    (_failure_after_commit_rolls_back, "a person was asked without need"),
    (_hooks_not_undone, "left behind: what the"),
    (_half_a_hook_counts, "hook was never called"),
    (_hooks_end_with_their_boot, "left behind: what the"),
    (_stopped_for_one_boot, "are kept down"),
    (_stopped_and_not_kept_down, "could start it again"),
    (_never_started_again, "do not run at its end"),
    (_stopped_by_the_look_of_it, "run while the workloads stand still"),
    (_watchdog_not_paused, "systemd hears nothing of web"),
    (_watchdog_of_one_boot, "nobody watches web"),
    (_watchdog_not_resumed, "nobody watches web"),
    (_sealed_before_dumped, "sealed although images are missing"),
)


def reduced() -> Iterator[tuple[Behaviour, dict[int, str]]]:
    """Each host without a fault, then single faults on those that differ most, most telling first."""
    for behaviour in BEHAVIOURS:
        yield behaviour, {}
    for behaviour in (GOOD, BEHAVIOURS[9], BEHAVIOURS[2], BEHAVIOURS[1]):
        for kind in ("cut", "kill"):
            for at in range(1, len(trace(behaviour)) + 1):
                yield behaviour, {at: kind}


@pytest.fixture(scope="module", autouse=True)
def _traces() -> None:
    """The faults are placed by the good runs, before anything is planted."""
    for behaviour in BEHAVIOURS:
        trace(behaviour)


@pytest.mark.parametrize(
    ("plant", "words"), BUGS, ids=[plant.__name__.strip("_").replace("_", " ") for plant, _ in BUGS]
)
def test_a_planted_bug_is_caught(plant: Callable[[Patch], None], words: str, monkeypatch: Patch) -> None:
    """The invariants see each of these mistakes, and name scenario, violation and journal."""
    plant(monkeypatch)
    for behaviour, faults in reduced():
        run = play(behaviour, faults)
        if run.problems:
            assert any(words in problem for problem in run.problems), run.report()
            assert run.report().startswith(f"scenario {behaviour.name}")
            return
    pytest.fail("no scenario of the reduced matrix notices this bug")

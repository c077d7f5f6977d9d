"""Mistakes in the handover between two kernels, to be planted: each is one that somebody could make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from kupgrade.core import kinds, recovery
from kupgrade.errors import KupgradeError
from kupgrade.kernel import sysctl
from kupgrade.machine import handover, host, serve_out, standing
from kupgrade.machine import takeover as machine_takeover
from kupgrade.machine.handover import RealHandover
from kupgrade.machine.takeover import RealTakeover
from kupgrade.model.record import Verdict
from kupgrade.standby import takeover as agent
from kupgrade.steps.beside import SpawnKernel, TakeMemory
from kupgrade.steps.checkpoint import Thaw
from kupgrade.steps.health import ProbeWorkloads
from kupgrade.steps.hook import AnswerForHooks
from kupgrade.steps.network import LockNetwork, UnlockNetwork
from kupgrade.steps.services import HoldUnits
from kupgrade.steps.stopping import StopUnits
from kupgrade.steps.watchdogs import PauseWatchdogs, ResumeWatchdogs
from tests.crash.spawn_matrix import BEHAVIOURS, GOOD
from tests.fakes import two_kernels_new, two_kernels_old
from tests.fakes.two_kernels import TORN, box
from tests.fakes.two_kernels_parts import SpawnBehaviour

Patch = pytest.MonkeyPatch
LATE, VERY_LATE, LOGGED = BEHAVIOURS[3], BEHAVIOURS[4], BEHAVIOURS[-1]


def _flag_after_merge(patch: Patch) -> None:
    def take_disk(self: Any) -> float:
        megabytes = machine_takeover.new_root.merge(self.libc, self.uuid, 1.0)
        with self._window() as window:
            window.channel.declare_commit()
        return float(megabytes)

    patch.setattr(RealTakeover, "take_disk", take_disk)


def _flag_forgotten(patch: Patch) -> None:
    patch.setattr(RealTakeover, "take_disk", lambda self: machine_takeover.new_root.merge(self.libc, self.uuid, 1.0))


def _merge_forgotten(patch: Patch) -> None:
    def take_disk(self: Any) -> float:
        with self._window() as window:
            window.channel.declare_commit()
        return 0.0

    patch.setattr(RealTakeover, "take_disk", take_disk)
    patch.setattr(RealTakeover, "disk_taken", lambda _self: True)


def _take_back(patch: Patch, *order: str) -> None:
    """The way back with its parts in another order, or without some."""

    def take_back(self: Any, watch: Any, spawner: Any, note: Any, error: KupgradeError) -> None:
        committed = False
        for part in order:
            match part:
                case "fence":
                    spawner.fence(note.instance)
                case "read":
                    committed = watch.channel.committed
                case "end" if committed:
                    self._end(error)
                case "resume":
                    handover.buses.resume(spawner.device, self._movables(note.ports))
                case "thaw":
                    self._thaw()
        sysctl.set_panic_timeout(note.panic, self.places.root)
        self._put(None)
        raise KupgradeError("The new kernel did not take over", str(error)) from error

    patch.setattr(RealHandover, "_take_back", take_back)


def _flag_read_before_the_fence(patch: Patch) -> None:
    _take_back(patch, "read", "fence", "end", "resume", "thaw")


def _flag_not_read(patch: Patch) -> None:
    _take_back(patch, "fence", "resume", "thaw")


def _devices_back_before_the_fence(patch: Patch) -> None:
    _take_back(patch, "resume", "fence", "read", "end", "thaw")


def _thawed_before_devices_are_back(patch: Patch) -> None:
    _take_back(patch, "fence", "read", "end", "thaw", "resume")


def _file_systems_stay_frozen(patch: Patch) -> None:
    _take_back(patch, "fence", "read", "end", "resume")


def _new_kernel_not_fenced(patch: Patch) -> None:
    _take_back(patch, "read", "end", "resume", "thaw")


def _nothing_noted(patch: Patch) -> None:
    patch.setattr(RealHandover, "_put", lambda *_: None)


def _nobody_settles(patch: Patch) -> None:
    patch.setattr(host, "jump_cut_short", lambda _state: False)


def _note_after_the_order(patch: Patch) -> None:
    original = RealHandover._put

    def put(self: Any, note: Any) -> None:
        if note is None or note.told:
            original(self, note)

    patch.setattr(RealHandover, "_put", put)


def _devices_still_before_file_systems(patch: Patch) -> None:
    original = RealHandover._freeze

    def freeze(self: Any) -> None:
        handover.buses.quiesce(cast(Any, None), ())
        original(self)

    patch.setattr(RealHandover, "_freeze", freeze)


def _no_snapshot(patch: Patch) -> None:
    original = two_kernels_new.enter

    def enter(here: Any, new: Any) -> None:
        original(here, new)
        new.overlay = None

    patch.setattr(two_kernels_new, "enter", enter)


def _snapshot_made_anew(patch: Patch) -> None:
    original = two_kernels_new.enter

    def enter(here: Any, new: Any) -> None:
        new.root_mounted = False
        original(here, new)

    patch.setattr(two_kernels_new, "enter", enter)


def _failure_not_told(patch: Patch) -> None:
    patch.setattr(standing, "fail", lambda *_: None)


def _goes_on_after_it_failed(patch: Patch) -> None:
    patch.setattr(agent, "MAX_CHILDREN", 1)
    original = agent._look_after

    def look_after(here: Any, order: Any) -> None:
        original(here, order)
        if not agent.Child.pid and box().child is not None and box().child.killed:
            agent._start(here, order)

    patch.setattr(agent, "_look_after", look_after)


def _killed_child_not_started(patch: Patch) -> None:
    patch.setattr(agent, "_look_after", lambda *_: None)


def _thaw_before_take_disk(patch: Patch) -> None:
    original = RealTakeover.take_disk

    def take_disk(self: Any) -> float:
        for copy in box().current.copies.values():
            copy.stopped = copy.frozen = False
        return original(self)

    patch.setattr(RealTakeover, "take_disk", take_disk)


def _unlocked_before_thaw(patch: Patch) -> None:
    original = Thaw.do

    def do(self: Any, host_: Any, before: Any) -> None:
        host_.network.unlock()
        original(self, host_, before)

    patch.setattr(Thaw, "do", do)


def _never_unlocked(patch: Patch) -> None:
    patch.setattr(UnlockNetwork, "do", lambda *_: {})
    patch.setattr(UnlockNetwork, "verify", lambda *_: Verdict.DONE)


def _old_kernel_not_locked(patch: Patch) -> None:
    patch.setattr(LockNetwork, "do", lambda *_: None)
    patch.setattr(LockNetwork, "verify", lambda *_: Verdict.DONE)


def _committed_without_probe(patch: Patch) -> None:
    patch.setattr(ProbeWorkloads, "do", lambda *_: None)


def _wiped_while_it_runs(patch: Patch) -> None:
    patch.setattr(SpawnKernel, "undo", lambda self, host_, before, _: host_.beside.wipe(before))


def _memory_stays_away(patch: Patch) -> None:
    patch.setattr(TakeMemory, "undo", lambda *_: None)


def _units_not_held(patch: Patch) -> None:
    patch.setattr(HoldUnits, "do", lambda *_: None)
    patch.setattr(HoldUnits, "verify", lambda *_: Verdict.DONE)


def _disk_taken_by_the_look_of_it(patch: Patch) -> None:
    patch.setattr(recovery, "REPEATED", kinds.REPEATED - {"take-disk"})
    patch.setattr(RealTakeover, "disk_taken", lambda _self: True)


def _commit_after_take_disk(patch: Patch) -> None:
    patch.setattr(recovery, "TAKE_DISK", "start-system")


def _hang_after_the_flag_not_seen(patch: Patch) -> None:
    patch.setattr(serve_out, "HANG_LIMIT", float("inf"))


def _agent_taken_for_its_kernel(patch: Patch) -> None:
    original = two_kernels_old.Watch.beats
    patch.setattr(two_kernels_old.Watch, "beats", lambda self: original(self) if box().new.agent else 0)  # type: ignore[union-attr]


def _waits_in_vain_and_stops_it(patch: Patch) -> None:
    original = RealHandover._await_commit

    def attend(self: Any, watch: Any, spawner: Any, note: Any) -> None:
        original(self, watch, note)
        serve_out.ServeOut(watch, spawner, note.instance, note.store, self.places.root, self._end, self._say).run()

    patch.setattr(RealHandover, "_attend", attend)


def _log_valid_before_the_flag(patch: Patch) -> None:
    def take_disk(self: Any) -> float:
        made = machine_takeover.new_root.prepare(self.libc, self.uuid, self.places.run)
        megabytes = machine_takeover.new_root.merge(self.libc, self.uuid, 1.0, made)
        with self._window() as window:
            window.channel.declare_commit()
        return float(megabytes)

    patch.setattr(RealTakeover, "take_disk", take_disk)


def _no_log(patch: Patch) -> None:
    patch.setattr(machine_takeover.new_root, "prepare", lambda *_: None)


def _never_retired_again(patch: Patch) -> None:
    patch.setattr(serve_out, "TRIES", 1)


def _buses_given_again(patch: Patch) -> None:
    patch.setattr(serve_out.ServeOut, "_given", property(lambda _: False, lambda *_: None))


def _nobody_answers_for_hooks(patch: Patch) -> None:
    patch.setattr(AnswerForHooks, "undo", lambda *_: None)


def _watchdog_counts_in_the_blackout(patch: Patch) -> None:
    patch.setattr(PauseWatchdogs, "do", lambda *_: None)
    patch.setattr(PauseWatchdogs, "verify", lambda *_: Verdict.DONE)


def _restored_units_not_watched(patch: Patch) -> None:
    patch.setattr(ResumeWatchdogs, "do", lambda *_: {})


def _agents_not_kept_down(patch: Patch) -> None:
    patch.setattr(StopUnits, "do", lambda self, host_, before: host_.stopping.stop(self.orders, before.units))


# Each bug with the words in which it is noticed, and the fault and the host on which it is, if none is enough for most.
BUGS: tuple[tuple[Callable[[Patch], None], str, str, SpawnBehaviour], ...] = (
    (_flag_after_merge, "before its flag", "", GOOD),
    (_flag_forgotten, "before its flag", "", GOOD),
    (_merge_forgotten, "before its commit is on disk", "", GOOD),
    (_flag_read_before_the_fence, "after the commit flag", "rollback", LATE),
    (_flag_not_read, "after the commit flag", "rollback", LATE),
    (_devices_back_before_the_fence, "before the new kernel was stopped", "", GOOD),
    (_thawed_before_devices_are_back, "without their disk", "", GOOD),
    (_file_systems_stay_frozen, "to a frozen file system", "", GOOD),
    (_new_kernel_not_fenced, "before the new kernel was stopped", "", GOOD),
    (_nothing_noted, "kernel.panic is 0", "kill", GOOD),
    (_nobody_settles, "to a frozen file system", "kill", GOOD),
    (_note_after_the_order, "kernel.panic is 0", "kill", GOOD),
    (_devices_still_before_file_systems, "below a file system that is not frozen", "", GOOD),
    (_nobody_answers_for_hooks, "left behind: what the", "", GOOD),
    (_no_snapshot, "before its flag", "", GOOD),
    (_snapshot_made_anew, "called and a workload is there", "kill", GOOD),
    (_failure_not_told, "although nothing hung", "", GOOD),
    (_goes_on_after_it_failed, "after the new kernel had given up", "kill", VERY_LATE),
    (_killed_child_not_started, "nobody does anything any more", "kill", GOOD),
    (_thaw_before_take_disk, "before its commit is on disk", "", GOOD),
    (_unlocked_before_thaw, "stands still and the network is not locked", "", GOOD),
    (_never_unlocked, "left behind: network lock", "", GOOD),
    (_old_kernel_not_locked, "while packets come in", "", GOOD),
    (_committed_without_probe, "never answered", "", GOOD),
    (_wiped_while_it_runs, "while a kernel runs in it", "", GOOD),
    (_memory_stays_away, "left behind: blocks", "", GOOD),
    (_units_not_held, "a second time beside its copy", "", GOOD),
    (_disk_taken_by_the_look_of_it, "before its commit is on disk", "kill", GOOD),
    (_commit_after_take_disk, "before it was recorded", "", GOOD),
    (_hang_after_the_flag_not_seen, "nobody ends a new kernel that hangs", "hang", GOOD),
    (_agent_taken_for_its_kernel, "although the new kernel serves", "agent", GOOD),
    (_waits_in_vain_and_stops_it, "although the new kernel serves", "agent", LATE),
    (_log_valid_before_the_flag, "before its flag", "", LOGGED),
    (_no_log, TORN, "cut", LOGGED),
    (_never_retired_again, "although it could go", "", GOOD),
    (_buses_given_again, "given twice", "", GOOD),
    (_watchdog_counts_in_the_blackout, "systemd hears nothing of web", "", GOOD),
    (_restored_units_not_watched, "nobody watches web", "", GOOD),
    (_agents_not_kept_down, "could start it again", "", GOOD),
)

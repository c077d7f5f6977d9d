"""Dumps workloads that run on, as an upgrade would dump them, and lets them go at once.

A service of its own, so that no killed terminal ends it in the middle. Order and its reasons (each a crash window):
  none begins        no upgrade may freeze or lock what this thaws and unlocks
  release            what a dump that was killed left, if even what comes after it was (OnFailure=)
  note               before anything is held: who comes after a kill knows whom to let go
  pre-dump           memory is copied while they run: the pause is short; criu freezes them itself, for a moment
  watchdogs, lock    systemd would kill who says nothing; TCP alone, and in this kernel alone: nothing outlives a boot
  freeze, dump       criu leaves them as they are
  thaw … watchdogs   whatever happened; the note stays until the links that criu made are gone
  seal, late files   nobody stands still for it
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import criu_seen
from kupgrade.host.images import FINAL, ImageStore
from kupgrade.host.systemd import Systemd
from kupgrade.kernel import proc
from kupgrade.kernel.blockfs import free_bytes
from kupgrade.live_images import release
from kupgrade.live_images.late import Taker
from kupgrade.live_images.ports import Ports
from kupgrade.machine import dumping, restorer, sandbox
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.network import RealNetwork
from kupgrade.machine.places import Places
from kupgrade.machine.rounds import at_once
from kupgrade.machine.units import RealUnits
from kupgrade.model.codec import decode
from kupgrade.model.live_images import DumpAnswer, Dumped, DumpRequest, Failure, Hold
from kupgrade.model.workload import Store, Workload
from kupgrade.statedir import StateDirectory
from kupgrade.steps.base import Nothing
from kupgrade.steps.checkpoint import PreDump

_OVERHEAD = 1.2  # of the disk that the images are put on


@dataclass(kw_only=True)
class Dumping(Ports):
    """The ports of one dump; they are those that an upgrade has."""

    request: DumpRequest

    def __post_init__(self) -> None:
        systemd = Systemd(self.places.root)
        self.units = RealUnits(self.places, systemd)
        self.checkpoints = RealCheckpoints(self.places, systemd)
        self.network = RealNetwork(self.places, durable=False)
        self.release = release.Release(self.places)

    def all_of(self) -> DumpAnswer:
        """Raises KupgradeError when nothing was dumped."""
        request = self.request
        with StateDirectory(self.places.root).none_begins():
            if (left := release.read(self.places)) is not None:
                release.await_dumpers(left, release.PATIENCE)
                self.release.all_of(left, sound=False)
            self._check()
            self.images.prepare(request.store)
            self._pre_dump()
            hold, errors, pause = self._stand_still()
            try:
                self.images.seal(request.store, "rehearsal", (request.old_release, request.new_release))
                store = ImageStore(request.store)
                used = store.used_bytes()
                taker = Taker(request, free_bytes(store.path) - int(used * _OVERHEAD) - request.reserve)
                told = tuple(self._told(taker, each, errors.get(each.name, ""), pause) for each in request.workloads)
            finally:
                self.release.all_of(hold, sound=True)
        return DumpAnswer(told, used)

    def _check(self) -> None:
        if self.checkpoints.filled(self.request.workloads) is not True:
            why = "the images of an earlier upgrade still fill their memory"
            raise KupgradeError("The workloads cannot be dumped yet", why, "Wait until it is filled")
        for each in self.request.workloads:
            if self.freezer.frozen(each) is not False:
                raise KupgradeError(f"{each.name} does not run", "somebody has frozen it", "Thaw it: systemctl thaw")

    def _pre_dump(self) -> None:
        """criu freezes and thaws by itself in each round; one that ends in between may not have thawed."""
        request = self.request
        hold = Hold(request.workloads, dumpers=proc.process(os.getpid()).cgroup)
        release.write(self.places, hold)
        try:
            if request.rounds:
                PreDump(request.store, request.workloads, request.rounds).do(self._ports, Nothing())
        except BaseException:
            self.release.all_of(hold, sound=False)
            raise

    def _stand_still(self) -> tuple[Hold, dict[str, str], float]:
        """The final dump: what was held, the errors by workload, and the seconds that nobody ran."""
        workloads = self.request.workloads
        self.checkpoints.prime(workloads)
        own = proc.process(os.getpid()).cgroup
        hold = Hold(workloads, self.units.watched(workloads), locked=True, dumpers=own)
        release.write(self.places, hold)
        errors: dict[str, str] = {each.name: "it was not dumped" for each in workloads}
        by_unit = {each.unit: each for each in workloads}
        try:
            for each in hold.watched:
                self.units.watch(by_unit[each.unit], 0.0)
            self.network.lock(workloads, both=False)
            begun = time.monotonic()
            try:
                for workload in workloads:
                    self.freezer.freeze(workload)
                at_once(lambda each: self._dump(each, errors), workloads)
            finally:
                self.release.run_on(hold, sound=not errors)
                pause = time.monotonic() - begun
        finally:
            self.release.let_go(hold, sound=True)
            self.checkpoints.criu.dismiss()
        return hold, errors, pause

    def _dump(self, workload: Workload, errors: dict[str, str]) -> int:
        """One that cannot be dumped keeps no other from it."""
        try:
            written = dumping.dump(self.checkpoints.criu, self.request.store, workload)
        except (KupgradeError, OSError) as error:
            errors[workload.name] = told(error)
            return 0
        del errors[workload.name]
        return written

    def _told(self, taker: Taker, workload: Workload, error: str, pause: float) -> Dumped:
        directory = Path(self.request.store.path) / workload.name
        rounds = sorted(directory.glob("pre-*"), key=lambda path: int(path.name.partition("-")[2]))
        pauses = tuple(round(found, 3) for path in rounds if (found := criu_seen.stood_still(path)) is not None)
        dumped = Dumped(workload.name, error, (*pauses, round(pause, 3)))
        if error:
            return dumped
        seen = criu_seen.files(directory / FINAL)
        sandboxed = "mnt" in workload.sandbox
        late, differs = taker.take(sandbox.view(workload.root_pid), seen, workload.carried, sandboxed=sandboxed)
        return replace(dumped, late=late, differs=differs)


def told(error: KupgradeError | OSError) -> str:
    """For the result: criu's own first error line where there is one."""
    return (error.why or error.what) if isinstance(error, KupgradeError) else str(error)


def abandoned(lock: Path) -> bool:
    """Whether nobody waits for the images any more: their lock is free, or gone."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def wipe(store: Store, late: str) -> None:
    """All that the dump left."""
    for path in (store.path, late):
        ImageStore(replace(store, path=path)).wipe()


def answer(request: DumpRequest, places: Places) -> DumpAnswer:
    """Dump; what fails is answered, not raised."""
    try:
        return Dumping(request=request, places=places).all_of()
    except KupgradeError as error:
        return DumpAnswer(failure=Failure(error.what, error.why, error.remedy, int(error.code)))
    except OSError as error:
        return DumpAnswer(failure=Failure("The workloads could not be dumped", str(error), "", 1))


def main(argv: Sequence[str]) -> int:
    """`dump REQUEST ANSWER`. SIGTERM does not end it: it ends by itself, soon, and leaves nobody held."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    request = decode(DumpRequest, json.loads(Path(argv[0]).read_text()), "request")
    found = answer(request, Places())
    if abandoned(Path(request.lock)):
        wipe(request.store, request.late)
        return 1
    restorer.put(Path(argv[1]), found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The ports on the modelled host: images, checkpoints, freezer, network. Each method is a few lines on the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.model.workload import Store, Workload
from tests.fakes.endings import Copy, Image
from tests.fakes.handed_over import Holder
from tests.fakes.machine import Machine
from tests.fakes.stopping import check_quiet


@dataclass
class Port:
    m: Machine


class Images(Port):
    def prepare(self, store: Store) -> None:
        if not (self.m.store_made and self.m.mounted):
            self.m.act("make store")
            self.m.store_made = self.m.mounted = True
        self.m.handed.fetch()

    def preserve(self, store: Store) -> tuple[int, int]:
        self.m.handed.preserve()
        return len(self.m.images), 1

    def preserved(self, store: Store) -> bool | None:
        return self.m.handed.preserved()

    def fetched(self, store: Store) -> Mapping[str, float | int]:
        return {}

    def take_back(self, store: Store) -> None:
        self.m.handed.take_back()

    def ready(self, store: Store) -> bool:
        return self.m.store_made and self.m.mounted

    def remember(self, store: Store) -> None:
        pass

    def seal(self, store: Store, upgrade: str, releases: tuple[str, str]) -> int:
        self.m.act("seal")
        if set(self.m.images) != {w.name for w in self.m.workloads}:
            self.m.violate("sealed although images are missing")
        self.m.sealed_in = self.m.boot_id
        return 1

    def sealed(self, store: Store) -> bool:
        return self.m.sealed_in is not None and self.m.handed.visible

    def verify(self, store: Store, *, in_place: bool = False) -> None:
        self.m.handed.check()
        if self.m.sealed_in is None:
            raise BadInputError("The checkpoint images are not complete")
        if self.m.behaviour.damaged_images in ("at once", "later"):
            raise BadInputError("A checkpoint image is damaged")

    def verified(self, store: Store) -> None:
        if self.m.sealed_in is None:
            raise BadInputError("The checkpoint images are not complete")
        if self.m.behaviour.damaged_images and not self.m.filling.sums:
            raise BadInputError("A checkpoint image is damaged")

    def recheck(self, store: Store) -> None:
        if self.m.behaviour.damaged_images == "at once":
            raise BadInputError("A checkpoint image is damaged")

    def withdraw(self, store: Store) -> None:
        self.m.act("withdraw")
        self.m.sealed_in = None

    def wipe(self, store: Store) -> None:
        self.withdraw(store)
        for name in list(self.m.images):
            self.m.act(f"wipe {name}")
            del self.m.images[name]
        self.m.rounds.clear()
        self.m.handed.holder = Holder.NAMES
        self.m.act("remove store")
        self.m.store_made = self.m.mounted = False

    def present(self, store: Store) -> bool:
        return bool(self.m.images or self.m.rounds)


class Checkpoints(Port):
    def changed(self, workload: Workload) -> int | None:
        return None

    def pre_dump(self, store: Store, rounds: Sequence[tuple[Workload, int]]) -> Sequence[int]:
        for workload, number in rounds:
            self.m.act(f"pre-dump {workload.name}")
            self.m.rounds.add(f"{workload.name}/{number}")
        return [100 >> number for _, number in rounds]

    def rounds(self, store: Store, workload: Workload) -> int:
        return sum(name.startswith(f"{workload.name}/") for name in self.m.rounds)

    def dump(self, store: Store, workloads: Sequence[Workload]) -> int:
        for workload in workloads:
            self._dump(workload)
        return len(workloads)

    def let_go(self, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            self.m.act(f"let go of {workload.name}")

    def _dump(self, workload: Workload) -> None:
        self.m.act(f"dump {workload.name}")
        check_quiet(self.m)
        copy = self.m.copies[workload.name]
        if not self.m.lock:
            self.m.violate(f"{workload.name} was dumped while packets come in: what it acknowledges now is lost")
        if copy.running:
            self.m.violate(f"{workload.name} was dumped while it runs")
        if self.m.behaviour.dump_fails and workload is not self.m.workloads[0]:
            raise KupgradeError("criu dump failed")
        self.m.images[workload.name] = Image(copy.generation, copy.lineage)

    def summon(self, workloads: Sequence[Workload]) -> None:
        self.m.act("summon")
        self.m.summoned = True

    def restore(
        self, store: Store, workloads: Sequence[Workload], timeout: float, *, in_place: bool = False
    ) -> Mapping[str, float | int | str]:
        side = "new" if self.m.ticket is not None else "old"
        for number, workload in enumerate(workloads):
            self.m.act(f"restore {workload.name}")
            if side in self.m.behaviour.restore_fails and number:
                raise KupgradeError(f"{workload.name} could not be restored")
            self._restore(workload.name)
            if in_place and workload.name in self.m.copies:
                self.m.filling.begin(workload.name)
        return {}

    def sound(self, workloads: Sequence[Workload]) -> None:
        self.m.filling.check(w.name for w in workloads)

    def filled(self, workloads: Sequence[Workload]) -> bool | None:
        return self.m.filling.filled(w.name for w in workloads)

    def await_filled(self, workloads: Sequence[Workload]) -> Mapping[str, float | int | str]:
        for workload in workloads:
            self.m.filling.finish(workload.name)
        return {}

    def _restore(self, name: str) -> None:
        check_quiet(self.m)
        if name in self.m.copies or not self.m.pids_free:
            raise KupgradeError(f"{name} could not be restored", "a PID is taken")
        if not self.m.summoned:
            raise KupgradeError(f"{name} could not be restored", "no restorer")
        if self.m.sealed_in is None or name not in self.m.images:
            self.m.violate(f"{name} was restored from incomplete images")
            return
        if self.m.lock != "both":
            self.m.violate(f"{name} was restored with an open network")
        image = self.m.images[name]
        if image.generation < self.m.seen[name]:
            self.m.violate(f"{name} was restored from stale images: {image.generation} after {self.m.seen[name]}")
        if image.generation != self.m.files[name]:
            self.m.violate(f"{name} was restored to {image.generation} but its file has {self.m.files[name]}")
        self.m.pending.discard(name)
        self.m.copies[name] = Copy(image.generation, image.lineage, stopped=True)

    def restored(self, workloads: Sequence[Workload]) -> bool | None:
        there = [w.name in self.m.copies for w in workloads]
        return True if all(there) else None if any(there) else False

    def kill(self, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            if workload.name in self.m.copies:
                self.m.act(f"end {workload.name}")
                if self.m.lock != "both":
                    self.m.violate(f"{workload.name} was ended with an open network: RST")
                del self.m.copies[workload.name]
                self.m.filling.ended(workload.name)

    def thaw_restored(self, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            self.m.act(f"let {workload.name} run")
            if self.m.thaw_failures and not self.m.probing:
                self.m.thaw_failures -= 1
                raise KupgradeError("The workloads could not be thawed")
            copy = self.m.copies.get(workload.name)
            if copy is not None:
                copy.stopped = copy.frozen = False

    def running(self, workloads: Sequence[Workload]) -> bool | None:
        return all(w.name in self.m.copies and self.m.copies[w.name].running for w in workloads)


class Freezer(Port):
    def frozen(self, workload: Workload) -> bool | None:
        copy = self.m.copies.get(workload.name)
        return None if copy is None else copy.frozen

    def freeze(self, workload: Workload) -> None:
        self.m.act(f"freeze {workload.name}")
        if not self.m.gate_passed:
            self.m.violate("frozen although the gate never said yes")
        self.m.copies[workload.name].frozen = True

    def thaw(self, workload: Workload) -> None:
        self.m.act(f"thaw {workload.name}")
        if workload.name in self.m.copies:
            self.m.copies[workload.name].frozen = False

    def pids(self, workload: Workload) -> tuple[int, ...]:
        return workload.pids if workload.name in self.m.copies else ()


class Network(Port):
    def lock(self, workloads: Sequence[Workload], *, both: bool) -> None:
        self.m.act("lock next boots")
        self.m.lock_file = True
        self.m.act("lock")
        self.m.lock = "both" if both else "input"

    def locked(self) -> bool | None:
        return bool(self.m.lock)

    def unlock(self) -> None:
        self.m.act("unlock next boots")
        self.m.lock_file = False
        self.m.act("unlock")
        self.m.lock = ""

    def kick(self, store: Store, workloads: Sequence[Workload]) -> int:
        self.m.act("kick")
        return 1

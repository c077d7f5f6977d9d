"""Pre-dump, dump, restore, thaw: the workload's state on its way.

Which images count is decided by the journal, not by files alone: `dump` done makes them valid, the intent to thaw
(either copy) makes them dead. Undoing `dump` in the boot where it was made withdraws them *before* the frozen originals
are thawed; undoing it in a later boot restores from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Store, Workload
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports import Checkpoints, Freezer, Images, Units

SHRINK = 0.7  # another round pays only when the last one wrote less than this share of the one before
ENOUGH = 8 << 20  # and when more than so many bytes were changed since: each round makes the restore longer


def pays(written: Sequence[int], changed: int | None) -> bool:
    """Whether one more pre-dump round does: by the bytes of the rounds so far and of what was `changed` since."""
    if len(written) > 1 and written[-1] > written[-2] * SHRINK:
        return False
    return changed is None or changed > ENOUGH


class HasCheckpoints(Protocol):
    """A host that dumps and restores."""

    images: Images
    checkpoints: Checkpoints
    freezer: Freezer
    units: Units


@register
@dataclass(frozen=True, slots=True)
class PreDump:
    """Copies memory while the workloads run, until the dirty set stops shrinking or the round limit."""

    kind: ClassVar[str] = "pre-dump"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    store: Store
    workloads: tuple[Workload, ...]
    rounds: int

    def describe(self) -> str:
        """One clause."""
        names = ", ".join(w.name for w in self.workloads)
        return f"copy the memory of {names} while it runs, at most {self.rounds} rounds"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed: the images go with their directory"

    def observe(self, host: HasCheckpoints) -> Nothing:
        """Nothing existed before."""
        return Nothing()

    def do(self, host: HasCheckpoints, before: Nothing) -> Figures:
        """Rounds of all workloads; a later one only of those that it pays for."""
        figures: dict[str, float | int | str] = {}
        written: dict[str, list[int]] = {each.name: [] for each in self.workloads}
        going_on = list(self.workloads)
        for number in range(1, self.rounds + 1):
            if number > 1:
                going_on = [w for w in going_on if pays(written[w.name], host.checkpoints.changed(w))]
            if not going_on:
                break
            sizes = host.checkpoints.pre_dump(self.store, [(each, number) for each in going_on])
            for workload, size in zip(going_on, sizes, strict=True):
                written[workload.name].append(size)
                figures[f"{workload.name}.round-{number}.bytes"] = size
                figures[f"{workload.name}.rounds"] = number
        host.images.remember(self.store)
        return figures

    def undo(self, host: HasCheckpoints, before: Nothing, context: UndoContext) -> None:
        """Nothing to do."""

    def verify(self, host: HasCheckpoints, before: Nothing) -> Verdict:
        """Whole rounds are there to build on: one that was cut short makes all of them worthless."""
        whole = all(host.checkpoints.rounds(self.store, workload) for workload in self.workloads)
        return Verdict.DONE if whole and host.images.ready(self.store) else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class Dump:
    """The final dump of the frozen workloads, sealed with checksums."""

    kind: ClassVar[str] = "dump"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    store: Store
    workloads: tuple[Workload, ...]
    upgrade: str
    old_release: str
    new_release: str
    timeout: float

    def describe(self) -> str:
        """One clause."""
        return "dump what changed since, checksum and seal the images"

    def describe_undo(self) -> str:
        """One clause."""
        return "same boot: declare the images dead; after a restart: restore the workloads from them"

    def observe(self, host: HasCheckpoints) -> Nothing:
        """Refuses when a workload's main process is not the planned one any more; others come and go."""
        for workload in self.workloads:
            found = host.freezer.pids(workload)
            if workload.root_pid not in found:
                raise KupgradeError(
                    f"{workload.name} has another main process than planned",
                    f"planned {workload.root_pid}, found {_few(found)}",
                    "Plan again",
                )
        return Nothing()

    def do(self, host: HasCheckpoints, before: Nothing) -> Figures:
        """Dump, then the complete mark; that of an attempt that was cut short goes first."""
        host.images.withdraw(self.store)
        written = host.checkpoints.dump(self.store, self.workloads)
        total = host.images.seal(self.store, self.upgrade, (self.old_release, self.new_release))
        return {"bytes": written, "total_bytes": total}

    def undo(self, host: HasCheckpoints, before: Nothing, context: UndoContext) -> None:
        """Dead before thawed, or restored before dead."""
        if context.same_boot:
            host.images.withdraw(self.store)
            host.checkpoints.let_go(self.workloads)
            return
        if not context.images_valid:
            return
        host.images.prepare(self.store)
        if not host.images.sealed(self.store):
            return  # cut short: nothing to restore, the units start anew
        if host.checkpoints.restored(self.workloads) is not True:
            _restore(host, self.store, self.workloads, self.timeout)
        try:
            host.images.verified(self.store)
        except KupgradeError:
            host.checkpoints.kill(self.workloads)
            raise
        _check_adopted(host, self.workloads)

    def verify(self, host: HasCheckpoints, before: Nothing) -> Verdict:
        """Sealed, and read back: while the originals are there, a bad image costs nothing but time."""
        if not host.images.sealed(self.store):
            return Verdict.NOT_DONE
        host.images.recheck(self.store)
        return Verdict.DONE


@register
@dataclass(frozen=True, slots=True)
class Restore:
    """Restores the workloads in the dark: network locked, every task stopped, each in its unit."""

    kind: ClassVar[str] = "restore"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    store: Store
    workloads: tuple[Workload, ...]
    timeout: float
    in_place: bool = False  # without their memory, which is filled while they run

    def describe(self) -> str:
        """One clause."""
        memory = " without their memory, which begins to be filled in place" if self.in_place else ""
        return f"verify the images and restore the workloads, stopped, into their units{memory}"

    def describe_undo(self) -> str:
        """One clause."""
        return "end the stopped copies; the images stay"

    def observe(self, host: HasCheckpoints) -> Nothing:
        """Nothing existed before in this kernel."""
        return Nothing()

    def do(self, host: HasCheckpoints, before: Nothing) -> Figures:
        """Verify, restore."""
        figures: Figures = {}
        if not host.checkpoints.restored(self.workloads):
            figures = _restore(host, self.store, self.workloads, self.timeout, in_place=self.in_place)
        return {**host.images.fetched(self.store), **figures}

    def undo(self, host: HasCheckpoints, before: Nothing, context: UndoContext) -> None:
        """End the copies; they have neither sent nor written anything."""
        host.checkpoints.kill(self.workloads)

    def verify(self, host: HasCheckpoints, before: Nothing) -> Verdict:
        """All processes there, out of images that were whole, and each root its unit's main process."""
        if not host.checkpoints.restored(self.workloads):
            return Verdict.NOT_DONE
        host.images.verified(self.store)
        host.checkpoints.sound(self.workloads)
        _check_adopted(host, self.workloads)
        return Verdict.DONE


@register
@dataclass(frozen=True, slots=True)
class Thaw:
    """Output commit: the restored workloads run. From its intent on, the images are dead."""

    kind: ClassVar[str] = "thaw"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]

    def describe(self) -> str:
        """One clause."""
        return "let the restored workloads run"

    def describe_undo(self) -> str:
        """One clause."""
        return "none: from here on the way back is a new upgrade"

    def observe(self, host: HasCheckpoints) -> Nothing:
        """Nothing to remember."""
        return Nothing()

    def do(self, host: HasCheckpoints, before: Nothing) -> None:
        """Thaw what has its memory, or will have it."""
        host.checkpoints.sound(self.workloads)
        host.checkpoints.thaw_restored(self.workloads)

    def undo(self, host: HasCheckpoints, before: Nothing, context: UndoContext) -> None:
        """Irreversible; never called."""

    def verify(self, host: HasCheckpoints, before: Nothing) -> Verdict:
        """All run."""
        match host.checkpoints.running(self.workloads):
            case True:
                return Verdict.DONE
            case False:
                return Verdict.NOT_DONE
        return Verdict.UNKNOWN


def _restore(
    host: HasCheckpoints, store: Store, workloads: tuple[Workload, ...], timeout: float, *, in_place: bool = False
) -> Figures:
    if host.checkpoints.restored(workloads) is None:
        host.checkpoints.kill(workloads)  # half a tree from an attempt that was cut short; it never ran
    host.checkpoints.summon(workloads)
    host.images.prepare(store)
    host.images.verify(store, in_place=in_place)
    return host.checkpoints.restore(store, workloads, timeout, in_place=in_place)


def _check_adopted(host: HasCheckpoints, workloads: tuple[Workload, ...]) -> None:
    for workload in workloads:
        wrong = host.units.adopted(workload)
        if wrong:
            raise KupgradeError(f"{workload.name} was restored but is not its unit's", wrong)


def _few(pids: tuple[int, ...]) -> str:
    text = " ".join(str(pid) for pid in pids[:8])
    return text + (" …" if len(pids) > 8 else "") or "none"

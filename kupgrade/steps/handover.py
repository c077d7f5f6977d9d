"""In the old kernel: images, devices and authority pass to the kernel beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Store, Workload
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.checkpoint import HasCheckpoints, pays
from kupgrade.steps.crossing import Armed
from kupgrade.steps.ports_handover import READY, SHIPPED, DiskFound, Handover, Takeover


class HasHandover(Protocol):
    """A host with a kernel beside it."""

    handover: Handover


class HasShipping(HasHandover, HasCheckpoints, Protocol):
    """The same, which makes the images, too."""


class HasBothSides(HasHandover, Protocol):
    """The same, when the step may be undone in either kernel."""

    takeover: Takeover


@register
@dataclass(frozen=True, slots=True)
class ReadyStandby:
    """What can be done in the new kernel before the blackout: drivers, a restore for a trial, the network lock."""

    kind: ClassVar[str] = "ready-standby"
    scope: ClassVar[Scope] = Scope.PEER
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    modules: tuple[str, ...]
    workloads: tuple[Workload, ...]
    writes: int  # bytes
    ports: tuple[str, ...]  # that will be handed over

    def describe(self) -> str:
        """One clause."""
        return "make the new kernel ready: drivers, criu's check and a restore for a trial, the network lock there"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed: it ends with the new kernel"

    def observe(self, host: HasHandover) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasHandover, before: Nothing) -> None:
        """Ask for it."""
        host.handover.ready(self.modules, self.workloads, self.writes, self.ports)

    def undo(self, host: HasHandover, before: Nothing, context: UndoContext) -> None:
        """Nothing to do."""

    def verify(self, host: HasHandover, before: Nothing) -> Verdict:
        """It said so; to a process that was killed since it said nothing, and asking again does no harm."""
        return Verdict.DONE if host.handover.answered(READY) else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class ShipImages:
    """Copies the first pre-dump round into the new kernel's memory while the workloads run, then makes further ones.

    Copying a large first round takes long; what is written meanwhile goes with the next round, which is smaller.
    """

    kind: ClassVar[str] = "ship-images"
    scope: ClassVar[Scope] = Scope.PEER
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    store: Store
    workloads: tuple[Workload, ...]
    rounds: int  # at most, the first one among them

    def describe(self) -> str:
        """One clause."""
        return f"copy the images into the new kernel's memory, in at most {self.rounds} rounds"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed: they end with the new kernel, whose memory is overwritten"

    def observe(self, host: HasShipping) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasShipping, before: Nothing) -> Figures:
        """All that is there, then round after round for as long as each is smaller; bytes of each shipment.

        Done again after a kill it ships everything again, and a round that was cut short begins the chain anew.
        """
        figures: dict[str, float | int | str] = {"bytes": host.handover.ship(self.store, 0)}
        written: dict[str, list[int]] = {each.name: [] for each in self.workloads}
        going_on = list(self.workloads)
        for number in range(2, self.rounds + 1):
            going_on = [w for w in going_on if pays(written[w.name], host.checkpoints.changed(w))]
            before_it = {host.checkpoints.rounds(self.store, w) for w in going_on}
            if not going_on or 0 in before_it:
                break
            wanted = [(each, host.checkpoints.rounds(self.store, each) + 1) for each in going_on]
            sizes = host.checkpoints.pre_dump(self.store, wanted)
            for (workload, at), size in zip(wanted, sizes, strict=True):
                written[workload.name].append(size)
                figures[f"{workload.name}.round-{at}.bytes"] = size
            host.images.remember(self.store)
            figures[f"round-{number}.bytes"] = host.handover.ship(self.store, min(before_it))
        return figures

    def undo(self, host: HasShipping, before: Nothing, context: UndoContext) -> None:
        """Nothing to do."""

    def verify(self, host: HasShipping, before: Nothing) -> Verdict:
        """Acknowledged, with checksums; what came over before a kill is not known, and is sent again."""
        return Verdict.DONE if host.handover.answered(SHIPPED) else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class AskStandby:
    """The last question before the blackout: does the agent in the new kernel answer? One that was killed is awaited.

    `timeout`: seconds.
    """

    kind: ClassVar[str] = "ask-standby"
    scope: ClassVar[Scope] = Scope.PEER
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    timeout: float

    def describe(self) -> str:
        """One clause."""
        return "ask the new kernel whether it still waits"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed: it changes nothing"

    def observe(self, host: HasHandover) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasHandover, before: Nothing) -> None:
        """Ask; raises when nobody answers in time."""
        host.handover.ask(self.timeout)

    def undo(self, host: HasHandover, before: Nothing, context: UndoContext) -> None:
        """Nothing to do."""

    def verify(self, host: HasHandover, before: Nothing) -> Verdict:
        """An answer needs no proof."""
        return Verdict.DONE


@register
@dataclass(frozen=True, slots=True)
class HandOver:
    """The crossing: the rest of the images, the devices and authority pass to the new kernel.

    Order and crash windows: file systems are frozen (clean on disk) before their devices are quiesced, and the devices
    before the new kernel is told. Killed in between, the next worker finds the note in /run and goes on watching:
    a new kernel that failed, died or stood still is fenced, then its commit flag is read: unset, devices and file
    systems are taken back and the originals thawed; set, nothing is, for the new kernel has written the disk.
    """

    kind: ClassVar[str] = "hand-over"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Armed
    epoch: int
    store: Store
    workloads: tuple[Workload, ...]
    ports: tuple[str, ...]
    uuid: str
    fstype: str
    options: str
    deadline: float  # seconds the new kernel has to commit

    def describe(self) -> str:
        """One clause."""
        return f"hand the devices behind {', '.join(self.ports)} and the frozen workloads to the new kernel"

    def describe_undo(self) -> str:
        """One clause."""
        return "stop the new kernel, take devices and file systems back"

    def observe(self, host: HasHandover) -> Armed:
        """The epoch of the ticket."""
        return Armed(self.epoch)

    def do(self, host: HasHandover, before: Armed) -> None:
        """Does not return when it works: this kernel ends."""
        disk = DiskFound(self.uuid, self.fstype, self.options)
        host.handover.hand_over(self.store, disk, self.ports, self.deadline)

    def undo(self, host: HasBothSides, before: Armed, context: UndoContext) -> None:
        """In the new kernel: ask to be stopped. In the old one: what a killed worker left is settled first."""
        if context.in_new_kernel:
            host.takeover.give_up("it rolled back")
        else:
            host.handover.settle()

    def verify(self, host: HasHandover, before: Armed) -> Verdict:
        """Whoever can ask is still in the old kernel, and everything is back."""
        return Verdict.NOT_DONE

"""Loading of the new kernel, and the crossing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Store
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports import Crossing, Images
from kupgrade.steps.ports_descriptors import Descriptors


class HasCrossing(Protocol):
    """A host with kexec. `return_plan` is set while an upgrade's journal is open."""

    crossing: Crossing
    images: Images
    descriptors: Descriptors

    def go_back(self) -> None:
        """From the new kernel to the old release with the same images; does not return."""


@register
@dataclass(frozen=True, slots=True)
class LoadKernel:
    """kexec_file_load of the new kernel. Unloaded on every way out, or a plain `reboot` would take it."""

    kind: ClassVar[str] = "load-kernel"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    kernel: str
    initrd: str
    cmdline: str

    def describe(self) -> str:
        """One clause."""
        return f"load {self.kernel} for kexec"

    def describe_undo(self) -> str:
        """One clause."""
        return "unload it"

    def observe(self, host: HasCrossing) -> Nothing:
        """Somebody else's loaded image is never replaced."""
        if host.crossing.loaded() is not False:
            raise KupgradeError(
                "A kexec image is loaded already, or that cannot be told",
                "it is not this upgrade's",
                "Unload it (kexec -u) and plan again",
            )
        return Nothing()

    def do(self, host: HasCrossing, before: Nothing) -> None:
        """Load."""
        host.crossing.load(self.kernel, self.initrd, self.cmdline)

    def undo(self, host: HasCrossing, before: Nothing, context: UndoContext) -> None:
        """Unload."""
        host.crossing.unload()

    def verify(self, host: HasCrossing, before: Nothing) -> Verdict:
        """The kernel says loaded."""
        match host.crossing.loaded():
            case True:
                return Verdict.DONE
            case False:
                return Verdict.NOT_DONE
        return Verdict.UNKNOWN


@dataclass(frozen=True, slots=True)
class PanicWas:
    """kernel.panic before, in seconds."""

    seconds: int


@register
@dataclass(frozen=True, slots=True)
class ArmWatchdog:
    """Arms a hardware watchdog for the crossing, where there is one that goes on counting through kexec.

    Scope DISK: it counts on in whatever kernel comes next, so the undo matters there, too.
    """

    kind: ClassVar[str] = "arm-watchdog"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    seconds: int

    def describe(self) -> str:
        """One clause."""
        return f"arm the hardware watchdog for {self.seconds} s, if there is one"

    def describe_undo(self) -> str:
        """One clause."""
        return "disarm it"

    def observe(self, host: HasCrossing) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasCrossing, before: Nothing) -> Figures:
        """Arm; without a watchdog the plan's warning stands and the dead-man timer alone guards."""
        return {"watchdog": host.crossing.arm_watchdog(self.seconds)}

    def undo(self, host: HasCrossing, before: Nothing, context: UndoContext) -> None:
        """Disarm."""
        host.crossing.disarm_watchdog()

    def verify(self, host: HasCrossing, before: Nothing) -> Verdict:
        """An absent watchdog is no failure; an armed one needs no further question."""
        return Verdict.DONE


@dataclass(frozen=True, slots=True)
class Armed:
    """The epoch that the new kernel's ticket carries."""

    epoch: int


@register
@dataclass(frozen=True, slots=True)
class Cross:
    """The crossing: flush and freeze every file system, then reboot(2) into the loaded kernel.

    Crash windows: before the reboot call the same boot goes on (file systems thawed, undone); after it the new kernel
    comes up and claims, or panics or hangs and the machine starts its default, the old kernel, which restores.
    """

    kind: ClassVar[str] = "cross"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Armed
    epoch: int
    new_release: str
    back_kernel: str
    back_initrd: str
    back_cmdline: str
    carried: Store | None = None  # images that exist only as long as this kernel hands them over
    descriptors: str = ""  # session of stored descriptors that come along

    def describe(self) -> str:
        """One clause."""
        return f"flush and freeze the file systems and jump into {self.new_release}"

    def describe_undo(self) -> str:
        """One clause."""
        return "before the jump: thaw the file systems; after it: kexec back to the old release with the same images"

    def observe(self, host: HasCrossing) -> Armed:
        """The epoch of the ticket."""
        return Armed(self.epoch)

    def do(self, host: HasCrossing, before: Armed) -> None:
        """Does not return when it works. Nothing is left behind: images that would not come along stop it here."""
        if self.carried is not None and host.images.preserved(self.carried) is not True:
            raise KupgradeError(
                "The images would not reach the new kernel",
                "the live update session that holds them ended with whoever had it open, or cannot be asked for",
                "Nothing is lost: the workloads were never ended. Try again",
            )
        if self.descriptors and host.descriptors.held(self.descriptors) is not True:
            raise KupgradeError(
                "Stored descriptors would not reach the new kernel",
                "the live update session that holds them ended with its holder, or cannot be asked for",
                "Nothing is lost: the stores of this kernel have them. Try again",
            )
        host.crossing.cross()

    def undo(self, host: HasCrossing, before: Armed, context: UndoContext) -> None:
        """See `describe_undo`."""
        if context.in_new_kernel:
            host.go_back()
        else:
            host.crossing.thaw_filesystems()

    def verify(self, host: HasCrossing, before: Armed) -> Verdict:
        """Whoever can ask is still in the old kernel."""
        return Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class Disarm:
    """Dead-man timer and watchdog stopped, kernel.panic as it was on the old kernel.

    Comes right before the commit: a timer that fired after it would kill workloads that serve, with dead images.
    """

    kind: ClassVar[str] = "disarm"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = PanicWas
    panic: int

    def describe(self) -> str:
        """One clause."""
        return f"stop the dead-man timer and the watchdog, set kernel.panic back to {self.panic}"

    def describe_undo(self) -> str:
        """One clause."""
        return "none needed: the way back does not wait for a timer"

    def observe(self, host: HasCrossing) -> PanicWas:
        """kernel.panic of the crossing."""
        return PanicWas(host.crossing.panic_timeout())

    def do(self, host: HasCrossing, before: PanicWas) -> None:
        """Stop both."""
        host.crossing.cancel_deadman()
        host.crossing.disarm_watchdog()
        host.crossing.set_panic_timeout(self.panic)

    def undo(self, host: HasCrossing, before: PanicWas, context: UndoContext) -> None:
        """kernel.panic of the crossing again, in case that the way back panics."""
        host.crossing.set_panic_timeout(before.seconds)

    def verify(self, host: HasCrossing, before: PanicWas) -> Verdict:
        """The dead-man is gone and kernel.panic is back; a watchdog may be armed by somebody else and tells nothing."""
        if host.crossing.deadman():
            return Verdict.NOT_DONE
        return Verdict.DONE if host.crossing.panic_timeout() == self.panic else Verdict.NOT_DONE

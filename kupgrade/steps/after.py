"""After the commit: time to prove itself, and telling others that their restart has happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.model.plan import Scope
from kupgrade.model.reboot import RebootWishes, left
from kupgrade.model.record import Verdict
from kupgrade.steps.base import Figures, UndoContext, register
from kupgrade.steps.ports_after import After


class HasAfter(Protocol):
    """A host with what comes after the commit."""

    after: After


@dataclass(frozen=True, slots=True)
class ServedSince:
    """The uptime (CLOCK_BOOTTIME seconds) at which the soak time began."""

    uptime: float


@register
@dataclass(frozen=True, slots=True)
class Soak:
    """Lets the new kernel serve for a while before it becomes the boot default.

    Scope BOOT: a machine that restarts meanwhile boots the old kernel, and nothing of this is left to be done.
    """

    kind: ClassVar[str] = "soak"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = ServedSince
    seconds: float

    def describe(self) -> str:
        """One clause."""
        return f"let the new kernel serve for {self.seconds:g} s; a restart meanwhile leads to the old one"

    def describe_undo(self) -> str:
        """One clause."""
        return "none: a new upgrade leads back"

    def observe(self, host: HasAfter) -> ServedSince:
        """From now on; a worker that was killed does not begin anew."""
        return ServedSince(host.after.uptime())

    def do(self, host: HasAfter, before: ServedSince) -> None:
        """Wait for the rest."""
        host.after.wait_until(before.uptime + self.seconds)

    def undo(self, host: HasAfter, before: ServedSince, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasAfter, before: ServedSince) -> Verdict:
        """The time is over."""
        return Verdict.DONE if host.after.uptime() >= before.uptime + self.seconds else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class SettleReboot:
    """Takes out of /run/reboot-required what asked for the kernel that now runs; or others would restart the host.

    What else asks for a restart stays; that of the old kernel (`asked`), too, for /run ended with it: a workload that
    was carried over still uses the library for which a restart was asked. Scope BOOT: /run ends with the boot.
    """

    kind: ClassVar[str] = "settle-reboot"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = RebootWishes
    release: str
    asked: tuple[str, ...] = ()

    def describe(self) -> str:
        """One clause."""
        kept = left(self.asked, self.release)
        others = f"; kept: {', '.join(kept)}" if kept else ""
        return f"take what asked for {self.release} out of /run/reboot-required{others}"

    def describe_undo(self) -> str:
        """One clause."""
        return "none: the kernel that was asked for runs"

    def observe(self, host: HasAfter) -> RebootWishes:
        """What asks for a restart now."""
        return host.after.reboot_wishes()

    def do(self, host: HasAfter, before: RebootWishes) -> Figures:
        """By what is there now: others may have asked since."""
        host.after.settle_reboot(self.release, left(self.asked, self.release))
        return {"kept": " ".join(host.after.reboot_wishes().packages or ())}

    def undo(self, host: HasAfter, before: RebootWishes, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasAfter, before: RebootWishes) -> Verdict:
        """Nobody asks for this kernel any more, and everybody else is named."""
        found = host.after.reboot_wishes()
        named = found.packages or ()
        kept = left(self.asked, self.release)
        settled = left(named, self.release) == tuple(dict.fromkeys(named)) and set(kept) <= set(named)
        return Verdict.DONE if settled and found.flag >= bool(named) else Verdict.NOT_DONE

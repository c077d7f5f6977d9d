"""The boot loader's default: the old kernel until the commit, the new one afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.steps.base import Figures, UndoContext, register
from kupgrade.steps.ports import Boot


class HasBoot(Protocol):
    """A host with a boot loader."""

    boot: Boot


@dataclass(frozen=True, slots=True)
class DefaultWas:
    """The default entry before (empty: unknown, or a boot loader that cannot be set), and what was written down."""

    entry: str
    stored: str | None


class _SetDefault:
    """Shared by the two steps below: they differ in the release and in whether they can be undone."""

    release: str

    def observe(self, host: HasBoot) -> DefaultWas:
        """The default now."""
        return DefaultWas(host.boot.default(), host.boot.stored())

    def do(self, host: HasBoot, before: DefaultWas) -> Figures:
        """Set it, where the boot loader can."""
        entry = host.boot.entry_for(self.release)
        if entry and entry != before.entry:
            host.boot.set_default(entry)
        return {"entry": entry or "unknown"}

    def verify(self, host: HasBoot, before: DefaultWas) -> Verdict:
        """The boot loader says so; one that cannot be asked is no failure (the plan warned)."""
        entry = host.boot.entry_for(self.release)
        return Verdict.DONE if not entry or host.boot.default() == entry else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class PinBootDefault(_SetDefault):
    """Makes the old kernel the boot default, so that a dead new kernel ends in a boot of the old one."""

    kind: ClassVar[str] = "pin-boot-default"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = DefaultWas
    release: str

    def describe(self) -> str:
        """One clause."""
        return f"keep {self.release} the boot default until the commit"

    def describe_undo(self) -> str:
        """One clause."""
        return "set the default that was there before"

    def undo(self, host: HasBoot, before: DefaultWas, context: UndoContext) -> None:
        """Back to the before-image, also where it was not known what that means: something was set all the same."""
        if before.entry or host.boot.entry_for(self.release):
            host.boot.restore_default(before.stored)


@register
@dataclass(frozen=True, slots=True)
class MarkGood(_SetDefault):
    """Makes the new kernel the boot default."""

    kind: ClassVar[str] = "mark-good"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = DefaultWas
    release: str

    def describe(self) -> str:
        """One clause."""
        return f"make {self.release} the boot default"

    def describe_undo(self) -> str:
        """One clause."""
        return "none: a new upgrade leads back"

    def undo(self, host: HasBoot, before: DefaultWas, context: UndoContext) -> None:
        """Never called."""

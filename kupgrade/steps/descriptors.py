"""Descriptor stores: held for the crossing after their services were stopped, returned before these start again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.descriptors import HOLD, RETURN
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports_descriptors import Descriptors


class HasDescriptors(Protocol):
    """A host whose service manager has descriptor stores."""

    descriptors: Descriptors


@register
@dataclass(frozen=True, slots=True)
class HoldDescriptors:
    """Puts what is in the stores of stopped services into a live update session, and takes its measure.

    Scope DISK: a kernel on the way back has them by the session only, and its stores are empty.
    Crash windows: until the jump the stores themselves have all of it; the session is held by a process of its own, and
    ends with that. Behind the jump see `kupgrade/machine/descriptor_holder.py`.
    """

    kind: ClassVar[str] = HOLD
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    session: str
    units: tuple[str, ...]
    strict: tuple[str, ...]  # those of which nothing may be lost
    expected: tuple[str, ...]  # "UNIT: NAME" of what was in the stores when this was planned

    def describe(self) -> str:
        """One clause."""
        return "leave stored descriptors in memory for the next kernel: " + (", ".join(self.expected) or "none yet")

    def describe_undo(self) -> str:
        """One clause."""
        return "same boot: hand none over, the stores still have them; after a restart: return them to the stores"

    def observe(self, host: HasDescriptors) -> Nothing:
        """Services that run could still change them; a session of this name is not this upgrade's."""
        if running := host.descriptors.running(self.units):
            raise KupgradeError(f"{running[0]} runs, so its descriptors may still change", "it has to be stopped first")
        if host.descriptors.held(self.session) is not False:
            raise KupgradeError(
                "Stored descriptors cannot be handed to the next kernel",
                "there is a live update session of this upgrade already, or none can be made",
                "See kupgrade preflight",
            )
        return Nothing()

    def do(self, host: HasDescriptors, before: Nothing) -> Figures:
        """Hold, measure."""
        return host.descriptors.hold(self.session, self.units, self.strict)

    def undo(self, host: HasDescriptors, before: Nothing, context: UndoContext) -> Figures | None:
        """Here the stores have them; in a later boot they come back, or what is lost is told."""
        if context.same_boot:
            host.descriptors.let_go(self.session)
            return None
        return host.descriptors.give_back(self.session, self.expected)

    def verify(self, host: HasDescriptors, before: Nothing) -> Verdict:
        """The session lives, and who holds it."""
        match host.descriptors.held(self.session):
            case True:
                return Verdict.DONE
            case False:
                return Verdict.NOT_DONE
        return Verdict.UNKNOWN


@register
@dataclass(frozen=True, slots=True)
class ReturnDescriptors:
    """After the commit: what came is checked and put into the stores; the services find it when they start.

    Nothing here can be taken back or tried again by going back, so what did not come is told and stops nothing.
    """

    kind: ClassVar[str] = RETURN
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    session: str
    expected: tuple[str, ...]

    def describe(self) -> str:
        """One clause."""
        return "check the stored descriptors and return them to the stores of their services, before these start"

    def describe_undo(self) -> str:
        """One clause."""
        return "none: the services have them"

    def observe(self, host: HasDescriptors) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasDescriptors, before: Nothing) -> Figures:
        """Check, return, free the memory of what was not."""
        return host.descriptors.give_back(self.session, self.expected)

    def undo(self, host: HasDescriptors, before: Nothing, context: UndoContext) -> None:
        """Never called."""

    def verify(self, host: HasDescriptors, before: Nothing) -> Verdict:
        """It came to its end; what became of each stands in the figures."""
        return Verdict.DONE if host.descriptors.given_back(self.session) else Verdict.NOT_DONE

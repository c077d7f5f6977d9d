"""The image store: prepared before anything is frozen, wiped after the commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Store
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports import Images


class HasImages(Protocol):
    """A host with an image store."""

    images: Images


@register
@dataclass(frozen=True, slots=True)
class PrepareStore:
    """Makes the directory for checkpoint images; its undo wipes every image of this upgrade."""

    kind: ClassVar[str] = "prepare-store"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    store: Store

    def describe(self) -> str:
        """One clause."""
        where = f" on {self.store.device}" if self.store.device else ""
        return f"make the private image directory {self.store.path}{where}"

    def describe_undo(self) -> str:
        """One clause."""
        return "wipe all images and remove the directory"

    def observe(self, host: HasImages) -> Nothing:
        """Refuses a directory that already holds images: nobody else's are ever wiped."""
        if self.store.device == "" and host.images.present(self.store):
            raise KupgradeError(f"{self.store.path} already holds images", "they are not this upgrade's")
        return Nothing()

    def do(self, host: HasImages, before: Nothing) -> None:
        """Make and mount."""
        host.images.prepare(self.store)

    def undo(self, host: HasImages, before: Nothing, context: UndoContext) -> None:
        """Wipe."""
        host.images.wipe(self.store)

    def verify(self, host: HasImages, before: Nothing) -> Verdict:
        """Images can be written there."""
        return Verdict.DONE if host.images.ready(self.store) else Verdict.NOT_DONE


@register
@dataclass(frozen=True, slots=True)
class WipeImages:
    """Wipes the images after the commit: they are dead and hold secrets."""

    kind: ClassVar[str] = "wipe-images"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    store: Store

    def describe(self) -> str:
        """One clause."""
        return "overwrite and remove the checkpoint images"

    def describe_undo(self) -> str:
        """One clause."""
        return "none: after the commit the images are dead"

    def observe(self, host: HasImages) -> Nothing:
        """Nothing that existed before is of use."""
        return Nothing()

    def do(self, host: HasImages, before: Nothing) -> None:
        """Wipe."""
        host.images.wipe(self.store)

    def undo(self, host: HasImages, before: Nothing, context: UndoContext) -> None:
        """Irreversible; never called after the commit."""

    def verify(self, host: HasImages, before: Nothing) -> Verdict:
        """No image is left."""
        return Verdict.NOT_DONE if host.images.present(self.store) else Verdict.DONE


@register
@dataclass(frozen=True, slots=True)
class Preserve:
    """Puts the sealed images into a live update session: this kernel leaves them where they are, for the next one.

    Crash windows: a worker that ends takes the session along, and the images; before the jump the frozen originals are
    there and everything is taken back. During the jump the worker is the one that makes it.
    """

    kind: ClassVar[str] = "preserve-images"
    scope: ClassVar[Scope] = Scope.BOOT
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    store: Store

    def describe(self) -> str:
        """One clause."""
        return "leave the images in memory for the next kernel (live update)"

    def describe_undo(self) -> str:
        """One clause."""
        return "hand nothing over; the memory is free again"

    def observe(self, host: HasImages) -> Nothing:
        """A session of this name is not this upgrade's."""
        if host.images.preserved(self.store) is not False:
            raise KupgradeError(
                "Images cannot be handed to the next kernel",
                "there is a live update session of this upgrade already, or none can be made",
                "See kupgrade preflight",
            )
        return Nothing()

    def do(self, host: HasImages, before: Nothing) -> Figures:
        """Preserve."""
        files, size = host.images.preserve(self.store)
        return {"files": files, "bytes": size}

    def undo(self, host: HasImages, before: Nothing, context: UndoContext) -> None:
        """Give them up."""
        host.images.take_back(self.store)

    def verify(self, host: HasImages, before: Nothing) -> Verdict:
        """The session lives. Another worker's is gone with it."""
        match host.images.preserved(self.store):
            case True:
                return Verdict.DONE
            case False:
                return Verdict.NOT_DONE
        return Verdict.UNKNOWN

"""What dumps and restores of live workloads have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from kupgrade.machine.images import RealImages
from kupgrade.machine.places import Places
from kupgrade.machine.units import RealFreezer
from kupgrade.steps.checkpoint import HasCheckpoints


@dataclass
class Ports:
    """Those that an upgrade has, too; the rest comes with who needs it."""

    places: Places
    images: RealImages = field(default_factory=RealImages)
    freezer: RealFreezer = field(default_factory=RealFreezer)

    @property
    def _ports(self) -> HasCheckpoints:
        return cast("HasCheckpoints", self)  # the ports are there, as kinds of their own

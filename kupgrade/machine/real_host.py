"""All ports of this machine together: what steps get for a host."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kupgrade.core.stakes import CROSS, HAND_OVER
from kupgrade.errors import KupgradeError, NeedsHumanError
from kupgrade.host.systemd import Systemd
from kupgrade.kernel.libc import Libc
from kupgrade.machine.after import RealAfter
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.crossing import RealCrossing
from kupgrade.machine.health import RealHealth, ask_leave
from kupgrade.machine.images import RealImages
from kupgrade.machine.network import RealNetwork
from kupgrade.machine.places import Places
from kupgrade.machine.planned import carried_descriptors, image_store, staged_floor
from kupgrade.machine.units import RealBoot, RealFreezer, RealUnits
from kupgrade.model.plan import Plan
from kupgrade.model.schedule import ORDINARY, Terms
from kupgrade.steps import registry

if TYPE_CHECKING:
    from kupgrade.machine.beside import RealBeside
    from kupgrade.machine.descriptors import RealDescriptors
    from kupgrade.machine.handover import RealHandover
    from kupgrade.machine.hooks import RealHooks
    from kupgrade.machine.stopping import RealStopping
    from kupgrade.machine.takeover import RealTakeover

registry.load_all()


@dataclass
class RealHost:
    """The ports that steps name, and the two ways to another boot."""

    plan: Plan
    images: RealImages
    checkpoints: RealCheckpoints
    freezer: RealFreezer
    network: RealNetwork
    units: RealUnits
    boot: RealBoot
    crossing: RealCrossing
    health: RealHealth
    after: RealAfter
    places: Places

    @functools.cached_property
    def beside(self) -> RealBeside:
        """A kernel beside this one. Imported when it is asked for: the agent of the next boot needs none of it."""
        from kupgrade.machine.beside import RealBeside

        return RealBeside(self.places)

    @functools.cached_property
    def handover(self) -> RealHandover:
        """To a kernel beside this one."""
        from kupgrade.machine.handover import RealHandover

        return RealHandover(self.places, self.crossing.libc, self.beside)

    @functools.cached_property
    def takeover(self) -> RealTakeover:
        """From a kernel beside this one."""
        from kupgrade.machine.takeover import RealTakeover

        uuid = next((str(s.params["uuid"]) for s in self.plan.steps if s.kind == HAND_OVER), "")
        return RealTakeover(self.places, self.crossing.libc, self.checkpoints.systemd, self.checkpoints, uuid)

    @functools.cached_property
    def descriptors(self) -> RealDescriptors:
        """Descriptor stores."""
        from kupgrade.host.descriptor_store import Stores
        from kupgrade.machine.descriptors import RealDescriptors

        return RealDescriptors(self.places, self.checkpoints.systemd, Stores(self.places.root))

    @functools.cached_property
    def stopping(self) -> RealStopping:
        """Units that stand still."""
        from kupgrade.machine.stopping import RealStopping

        return RealStopping(self.checkpoints.systemd)

    @functools.cached_property
    def hooks(self) -> RealHooks:
        """The operator's programs."""
        from kupgrade.machine.hooks import RealHooks

        return RealHooks(self.plan)

    def go_back(self) -> None:
        """From the new kernel to the old release, by kexec, else by an ordinary restart."""
        self._jump_back(self.plan)

    def reenter(self, plan: Plan) -> None:
        """The old release once more, with the workloads' PIDs kept free."""
        self._jump_back(plan)

    def _jump_back(self, plan: Plan) -> None:
        cross = next((spec.params for spec in plan.steps if spec.kind == CROSS), None)
        if cross is None:
            raise NeedsHumanError("The plan has no crossing to go back over", "it was written by another release")
        fetch_descriptors(self, plan)
        self.crossing.jump(cross["back_kernel"], cross["back_initrd"], cross["back_cmdline"])


def compose(plan: Plan, places: Places, terms: Terms = ORDINARY) -> RealHost:
    """The real ports for one plan, begun on these terms."""
    systemd = Systemd(places.root)
    checkpoints = RealCheckpoints(
        places, systemd, network_timeout=plan.network_timeout, store=image_store(plan), new_release=plan.new_release
    )
    return RealHost(
        plan=plan,
        images=RealImages(),
        checkpoints=checkpoints,
        freezer=RealFreezer(),
        network=RealNetwork(places, plan.network),
        units=RealUnits(places, systemd),
        boot=RealBoot(places),
        crossing=RealCrossing(places, Libc()),
        health=RealHealth(places, checkpoints, lambda: ask_leave(plan, terms, places), staged_floor(plan)),
        after=RealAfter(places),
        places=places,
    )


def fetch_descriptors(host: RealHost, plan: Plan) -> None:
    """Stored descriptors that another kernel left are held in this one, so that every kexec takes them along."""
    if session := carried_descriptors(plan):
        with contextlib.suppress(KupgradeError):  # it is tried again, and told, when they are given back
            host.descriptors.fetch(session)

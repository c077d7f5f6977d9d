"""Restores images of live workloads in a copy of their host, on the kernel that runs there, as a new kernel's agent
would: in the dark, into their units, probed, let go.

Runs in the machine of a rehearsal and nowhere else: what it does there has no way back and needs none.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import nft
from kupgrade.host.systemd import Systemd
from kupgrade.live_images.late import lay
from kupgrade.live_images.ports import Ports
from kupgrade.machine.checkpoints import RealCheckpoints
from kupgrade.machine.health import RealHealth, ask
from kupgrade.machine.places import Places
from kupgrade.machine.units import RealUnits
from kupgrade.model.codec import decode, encode
from kupgrade.model.live_images import Restored, RestoreRequest
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Workload
from kupgrade.steps.base import Nothing
from kupgrade.steps.checkpoint import Restore, Thaw

_POLL = 0.2


@dataclass(kw_only=True)
class Restoring(Ports):
    """The ports of one restore; they are those that an upgrade has."""

    request: RestoreRequest

    def __post_init__(self) -> None:
        self.systemd = Systemd(self.places.root)
        self.units = RealUnits(self.places, self.systemd)
        store, release = self.request.store, self.request.new_release
        self.checkpoints = RealCheckpoints(self.places, self.systemd, store=store, new_release=release)
        self.health = RealHealth(self.places, self.checkpoints)

    def all_of(self) -> tuple[Restored, ...]:
        """Each for itself: one that cannot be restored keeps no other from it."""
        request, workloads = self.request, self.request.workloads
        lay(request.files, Path(request.late), self.places.root)
        self.places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        for workload in workloads:
            self.units.hold(workload, "of a rehearsal", int(request.timeout))
        self.systemd.reload()
        ports = (port for each in workloads for port in each.tcp_ports)
        nft.lock(ports, (port for each in workloads for port in each.udp_ports), nft.Direction.BOTH)
        found = [self._restore(workload) for workload in workloads]
        nft.unlock()
        self.units.release(workloads)
        return tuple(self._settled(*pair) for pair in zip(workloads, found, strict=True))

    def _restore(self, workload: Workload) -> Restored:
        begun = time.monotonic()
        try:
            step = Restore(self.request.store, (workload,), self.request.timeout)
            step.do(self._ports, Nothing())
            if step.verify(self._ports, Nothing()) is not Verdict.DONE:
                raise KupgradeError(f"{workload.name} was not restored", "not all of its processes are there")
            seconds = round(time.monotonic() - begun, 3)
            self.health.probe(workload)
            Thaw((workload,)).do(self._ports, Nothing())
        except (KupgradeError, OSError) as error:
            return Restored(workload.name, self._gone(workload, error))
        return Restored(workload.name, "", seconds)

    def _gone(self, workload: Workload, error: KupgradeError | OSError) -> str:
        """End what is left of it; what went wrong, in words."""
        why = error.why or error.what if isinstance(error, KupgradeError) else str(error)
        try:
            self.checkpoints.kill((workload,))
        except KupgradeError as left:
            return f"{why}; {left}"
        return why

    def _settled(self, workload: Workload, found: Restored) -> Restored:
        """Whether it is well once it runs as the unit that it was, for a while."""
        if found.error:
            return found
        deadline = time.monotonic() + self.request.settle
        wrong = ""
        while not wrong and time.monotonic() < deadline:
            wrong = self._wrong(workload)
            time.sleep(_POLL)
        if not wrong:
            try:
                ask(workload.probe, workload.name)
            except KupgradeError as error:
                wrong = str(error)
        return Restored(found.name, wrong and f"it was restored, and then: {wrong}", found.seconds)

    def _wrong(self, workload: Workload) -> str:
        if self.checkpoints.running((workload,)) is not True:
            return "it does not run"
        return self.units.adopted(workload)


def main(argv: Sequence[str]) -> int:
    """`restore REQUEST`: one JSON array."""
    request = decode(RestoreRequest, json.loads(Path(argv[0]).read_text()), "request")
    print(json.dumps(encode(Restoring(request=request, places=Places()).all_of())))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

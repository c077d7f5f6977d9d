"""The port `Descriptors`: stores of the service manager, taken from it, held, and given back."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host.descriptor_store import Stored, Stores, giver_command, kind_of
from kupgrade.host.systemd import Systemd
from kupgrade.kernel import liveupdate, process
from kupgrade.kernel.libc import Libc
from kupgrade.machine import descriptor_holder as holder
from kupgrade.machine.descriptor_holder import Checked, Taken
from kupgrade.machine.places import Places
from kupgrade.machine.preserving import make_room
from kupgrade.model.descriptors import LOST, MEMORY, RETURNED
from kupgrade.steps.base import Figures

_MANAGER = 1
_PATIENCE = 30.0  # seconds for systemd to come up


def from_manager(unit: str, stored: Sequence[Stored], root: Path) -> list[Taken]:
    """Duplicates of stored descriptors out of PID 1, pidfd_getfd(2). Raises KupgradeError when one is not there."""
    own = {(fd.device, fd.inode): fd for fd in process.fds(_MANAGER, root)}
    libc = Libc()
    found: list[Taken] = []
    pidfd = libc.pidfd_open(_MANAGER)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, pidfd)
        for each in stored:
            fd = own.get((each.device, each.inode))
            if fd is None:
                raise KupgradeError(f"{unit}: {each.name} cannot be taken", "PID 1 has no such descriptor")
            taken = libc.pidfd_getfd(pidfd, fd.number)
            found.append(Taken(unit, each.name, taken, fd.flags & os.O_ACCMODE != os.O_RDONLY))
    return found


@dataclass
class RealDescriptors:
    """This machine's. `_missing`: why a session did not come."""

    places: Places
    systemd: Systemd
    stores: Stores
    calls: liveupdate.Calls = liveupdate.KERNEL
    take: Callable[[str, Sequence[Stored], Path], list[Taken]] = from_manager
    _missing: dict[str, str] = field(default_factory=dict)

    def running(self, units: Sequence[str]) -> Sequence[str]:
        """See the port."""
        return [unit for unit in units if self.stores.show(unit).active]

    def hold(self, session: str, units: Sequence[str], strict: Sequence[str]) -> Figures:
        """See the port."""
        content = {unit: self.stores.content(unit) for unit in units}
        lost = {f"{unit}: {each.name}": kind for unit in units for each in content[unit] if (kind := _lost(each))}
        for label, kind in lost.items():
            if label.startswith(tuple(f"{unit}: " for unit in strict)):
                why = f"{kind}: only memory files (memfds) can be handed over"
                raise KupgradeError(f"{label} would be lost", why, "See losses in the policy's preserve")
        kept = {unit: [each for each in content[unit] if not _lost(each)] for unit in units}

        def begin() -> holder.Held:
            make_room(2 * sum(map(len, kept.values())))  # and once more while they are preserved
            taken = [each for unit in units for each in self.take(unit, kept[unit], self.places.root)]
            return holder.hold(session, taken, self.places.root, self.calls)

        self.places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        index = holder.start(self.places, session, begin)
        sizes = {each.token: each.size for each in index.descriptors}
        told = {
            each.label: f"{each.size} bytes, CRC-32 {each.crc:08x}, seals {each.seals:#x}" for each in index.descriptors
        }
        return {"files": len(sizes), "bytes": sum(sizes.values()), **told, **{k: LOST + v for k, v in lost.items()}}

    def held(self, session: str) -> bool | None:
        """See the port."""
        if holder.post(self.places).holder(session) is None:
            return False
        try:
            return liveupdate.session_lives(session, self.places.root, self.calls)
        except KupgradeError:
            return None

    def let_go(self, session: str) -> None:
        """See the port."""
        holder.post(self.places).release(session, "descriptors")

    def fetch(self, session: str) -> None:
        """Have what another kernel left held in this one. Raises KupgradeError when it cannot be told what it left."""
        if self.given_back(session) or holder.post(self.places).holder(session) is not None:
            return
        try:
            holder.start(self.places, session, lambda: holder.fetch(session, self.places.root, self.calls))
            self._missing.pop(session, None)
        except holder.DescriptorsLostError as error:
            self._missing[session] = f"{error.what}: {error.why}" if error.why else error.what

    def give_back(self, session: str, expected: Sequence[str]) -> Figures:
        """See the port. What became of them is written down before the holder ends: it is told once, and truly."""
        outcome = self._outcome(session)
        if outcome is None:
            self.fetch(session)
            if session in self._missing:
                outcome = dict.fromkeys(expected, LOST + self._missing[session])
            else:
                self.systemd.await_manager(_PATIENCE)
                outcome = self._give(holder.ask_check(self.places))
            self._write(session, outcome)
        self.let_go(session)
        return outcome

    def given_back(self, session: str) -> bool:
        """See the port."""
        return self._outcome(session) is not None and holder.post(self.places).holder(session) is None

    def _give(self, came: Sequence[Checked]) -> dict[str, str]:
        outcome = {each.descriptor.label: LOST + each.wrong for each in came if each.wrong}
        good = [each for each in came if not each.wrong]
        units = tuple(dict.fromkeys(each.descriptor.unit for each in good))
        running = self.running(units)
        wrong = self.stores.start_return([unit for unit in units if unit not in running], giver_command())
        wrong = {**wrong, **dict.fromkeys(running, "the service was started before they came")}
        stored = {unit: {(s.name, s.device, s.inode) for s in self.stores.content(unit)} for unit in units}
        for each in good:
            unit, name = each.descriptor.unit, each.descriptor.name
            there = (name, each.device, each.inode) in stored[unit]
            why = wrong.get(unit, "systemd did not keep it, see FileDescriptorStoreMax=")
            if outcome.get(each.descriptor.label, RETURNED) == RETURNED:  # else another one of this name is lost
                outcome[each.descriptor.label] = RETURNED if there else LOST + why
        return outcome

    def _mark(self) -> Path:
        return self.places.run / "descriptors-returned.json"

    def _outcome(self, session: str) -> dict[str, str] | None:
        """What became of them in this boot; None: nothing yet."""
        try:
            found = json.loads(self._mark().read_text())
        except (OSError, ValueError):
            return None
        return dict(found["outcome"]) if found["session"] == session else None

    def _write(self, session: str, outcome: Mapping[str, str]) -> None:
        self.places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._mark().with_suffix(".new")
        new.write_text(json.dumps({"session": session, "outcome": outcome}))
        new.replace(self._mark())


def _lost(stored: Stored) -> str:
    """The kind of a descriptor that cannot be handed over; empty for one that can."""
    kind = kind_of(stored)
    return "" if kind == MEMORY else kind

"""Lets workloads that were dumped run on: in the end of each dump, and when the one who dumped was killed.

Whoever holds them writes down beforehand what it is about to do, in /run: the note ends with the boot, as all of it
does. systemd starts this when the dumping service has failed, however it did (OnFailure=), and the next dump does.

criu itself is waited for: killed in the middle it leaves processes that run its code, and do not outlive that.

Crash windows: every part may be done twice, and the note goes when all of it was done. Sockets before the thaw: in
repair mode a write of their owner fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host import nft
from kupgrade.host.systemd import Systemd
from kupgrade.kernel import cgroup, process, tcp_repair
from kupgrade.kernel.libc import Libc
from kupgrade.kernel.proc import GONE
from kupgrade.machine import restorer, sandbox
from kupgrade.machine.places import Places
from kupgrade.machine.units import RealFreezer, RealUnits
from kupgrade.model.codec import decode
from kupgrade.model.live_images import Hold
from kupgrade.model.workload import Workload

Item = TypeVar("Item")
PATIENCE = 120.0  # seconds
_POLL = 0.02
_DELETED = " (deleted)"  # d_path(9)


def note(places: Places) -> Path:
    """Where it is written down."""
    return places.run / "live-images.json"


def write(places: Places, hold: Hold) -> None:
    """Before what it tells of is done."""
    places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    restorer.put(note(places), hold)


def read(places: Places) -> Hold | None:
    """None: nobody is held."""
    try:
        return decode(Hold, json.loads(note(places).read_text()), "live-images.json")
    except FileNotFoundError:
        return None


@dataclass
class Release:
    """The ways back, each of them alone."""

    places: Places

    def run_on(self, hold: Hold, *, sound: bool) -> None:
        """Thaw all. `sound`: criu itself said that it had let go of them, so no socket needs a look.

        Raises the first failure when the others were thawed.
        """
        _each(hold.workloads, lambda workload: self._run_on(workload, sound=sound))

    def _run_on(self, workload: Workload, *, sound: bool) -> None:
        try:
            if not sound:
                tcp_repair.end(cgroup.members(workload.cgroup), Libc())
        finally:
            freezer = RealFreezer()
            if cgroup.exists(workload.cgroup) and freezer.frozen(workload) is not False:
                freezer.thaw(workload)

    def let_go(self, hold: Hold, *, sound: bool) -> None:
        """They run, are reached, and are watched again. Raises the first failure, when the rest was done."""
        units = RealUnits(self.places, Systemd(self.places.root))
        by_unit = {each.unit: each for each in hold.workloads}
        parts: list[Callable[[], None]] = [
            lambda: self.run_on(hold, sound=sound),
            nft.unlock if hold.locked else lambda: None,
            lambda: _each(hold.watched, lambda each: units.watch(by_unit[each.unit], each.seconds)),
        ]
        _each(parts, lambda part: part())

    def all_of(self, hold: Hold, *, sound: bool) -> None:
        """That, and what criu made beside their files goes; then it is forgotten. Raises as `let_go`."""
        parts: list[Callable[[], None]] = [
            lambda: self.let_go(hold, sound=sound),
            lambda: _each(hold.workloads, remove_links),
        ]
        _each(parts, lambda part: part())
        note(self.places).unlink(missing_ok=True)


def remove_links(workload: Workload) -> None:
    """Second names that criu made for files whose own are gone: a restore removes them, and here none comes."""
    for pid in cgroup.members(workload.cgroup):
        try:
            gone = {(fd.target.removesuffix(_DELETED), fd.inode) for fd in process.fds(pid) if _gone(fd.target)}
            gone |= {(each.path, each.inode) for each in process.mappings(pid) if each.deleted}
        except KernelError as error:
            if error.errno not in GONE:
                raise
            continue
        for name, inode in gone:
            _remove_link(sandbox.view(workload.root_pid) / name.lstrip("/"), inode)


def _gone(target: str) -> bool:
    return target.startswith("/") and target.endswith(_DELETED)


def _remove_link(path: Path, inode: int) -> None:
    for link in path.parent.glob("link_remap.*"):
        with suppress(FileNotFoundError):
            if link.lstat().st_ino == inode:
                link.unlink()


def await_dumpers(hold: Hold, patience: float) -> None:
    """Wait (seconds) for a criu whose master was killed: it ends its work by itself, and has let go of all then.

    One that does not end is no reason to hold the workloads for ever.
    """
    deadline = time.monotonic() + patience
    while hold.dumpers and time.monotonic() < deadline:
        if not set(cgroup.members(hold.dumpers) if cgroup.exists(hold.dumpers) else ()) - {os.getpid()}:
            return
        time.sleep(_POLL)


def _each(items: Iterable[Item], work: Callable[[Item], object]) -> None:
    """All of them, whichever fails; raises the first failure in the end."""
    failed: KupgradeError | OSError | None = None
    for item in items:
        try:
            work(item)
        except (KupgradeError, OSError) as error:
            failed = failed or error
    if failed is not None:
        raise failed


def main() -> int:
    """Release whoever is still held."""
    places = Places()
    hold = read(places)
    if hold is None:
        return 0
    try:
        await_dumpers(hold, PATIENCE)
        Release(places).all_of(hold, sound=False)
    except (KupgradeError, OSError) as error:
        print(f"<3>kupgrade: a workload may still be held: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

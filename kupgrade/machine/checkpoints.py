"""Dump and restore of workloads: criu, the restorer in each unit, and signals to restored, stopped copies."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host.command import tools_of
from kupgrade.host.criu import Criu
from kupgrade.host.images import round_name
from kupgrade.host.systemd import Systemd
from kupgrade.kernel import cgroup, pagemap, proc, tcp_repair
from kupgrade.kernel.libc import Libc
from kupgrade.machine import (
    copies,
    dumping,
    enclosure,
    fill,
    network,
    nursery,
    restorer,
    restoring,
    sandbox,
    starter,
    streams,
    thawing,
)
from kupgrade.machine.images import store_of
from kupgrade.machine.places import Places
from kupgrade.machine.rounds import WHOLE, at_once, bytes_in, last_round
from kupgrade.model.codec import decode
from kupgrade.model.workload import Store, StoreKind, Workload
from kupgrade.steps.base import Figures

_POLL = 0.005  # seconds
_STARTER_TIMEOUT = 10.0  # seconds
_PATIENCE = 600.0  # seconds a restorer waits for its request


@dataclass
class RealCheckpoints:
    """The port `Checkpoints` on this machine."""

    places: Places
    systemd: Systemd
    criu: Criu = field(default_factory=Criu)
    store: Store | None = None  # of the plan: its images tell which processes were dumped
    new_release: str = ""  # of the plan: on the way back a weaker sandbox is better than none of the processes
    network_timeout: float = 30.0
    round_seconds: dict[str, float] = field(default_factory=dict)  # of each workload's last pre-dump round
    _tokens: dict[str, str] = field(default_factory=dict)  # of the restorers summoned, by workload

    def pre_dump(self, store: Store, rounds: Sequence[tuple[Workload, int]]) -> Sequence[int]:
        """See the port."""
        return at_once(lambda each: self._pre_dump(store, *each), rounds)

    def _pre_dump(self, store: Store, workload: Workload, number: int) -> int:
        """The mark tells a whole round: one that was cut short had reset what counts as changed."""
        self._refuse_unfilled(workload)
        images = store_of(store)
        if number == 1:
            images.forget_rounds(workload.name)
        directory = images.round_directory(workload.name, round_name(number))
        begun = time.monotonic()
        dumping.pre_dump(self.criu, workload, directory, number)
        (directory / WHOLE).touch(mode=0o600)
        self.round_seconds[workload.name] = time.monotonic() - begun
        return bytes_in(directory)

    def prime(self, workloads: Sequence[Workload]) -> None:
        """Have what dumps the workloads wait for it. One that a killed process left sees that, and ends."""
        self.criu.prime(sum(sandbox.around(each, each.root_pid, dumping=True) is None for each in workloads))

    def rounds(self, store: Store, workload: Workload) -> int:
        """See the port."""
        return last_round(store_of(store).path / workload.name)

    def changed(self, workload: Workload) -> int | None:
        """See the port; shared pages count once for each process."""
        try:
            return sum(pagemap.soft_dirty(pid) for pid in cgroup.members(workload.cgroup))
        except KernelError:
            return None

    def dump(self, store: Store, workloads: Sequence[Workload]) -> int:
        """See the port; each on top of its last complete round."""
        return sum(at_once(lambda each: self._dump(store, each), workloads))

    def _dump(self, store: Store, workload: Workload) -> int:
        self._refuse_unfilled(workload)
        return dumping.dump(self.criu, store, workload)

    def let_go(self, workloads: Sequence[Workload]) -> None:
        """Sockets that a killed criu left in repair mode: their owner's next write would fail."""
        for workload in workloads:
            try:
                tcp_repair.end(cgroup.members(workload.cgroup) if cgroup.exists(workload.cgroup) else (), Libc())
            except KernelError as error:  # they are thawed all the same: frozen they are of no use to anybody
                sys.stderr.write(f"<4>kupgrade: connections of {workload.name} may be cut off: {error}\n")

    def as_dumped(self, workloads: Sequence[Workload]) -> tuple[Workload, ...]:
        """With the processes that were dumped, as far as there is a dump: some begin and end after the plan."""
        return tuple(dumping.as_dumped(self.store, each) for each in workloads)

    def summon(self, workloads: Sequence[Workload]) -> None:
        """Start the restorers: they import what criu needs while images are verified and the network comes up."""
        if not self.systemd.running:
            return  # beside an old kernel: forked from here when it is time
        for workload in workloads:
            self._end_starter(workload)
            self._tokens[workload.name] = restorer.spawn(self.places, workload.name, _PATIENCE)

    def _end_starter(self, workload: Workload) -> None:
        """End the start process that waits for an agent which is gone: it would keep the unit from starting again."""
        pid = sandbox.starter(workload.cgroup, starter.gate_path(self.places, workload.name))
        if not pid:
            return
        with contextlib.suppress(KernelError):
            copies.send(pid, signal.SIGKILL)
        deadline = time.monotonic() + _STARTER_TIMEOUT
        while self.systemd.show(workload.unit).active == "activating" and time.monotonic() < deadline:
            time.sleep(_POLL * 10)
        self.systemd.reset_failed([workload.unit])

    def restore(
        self, store: Store, workloads: Sequence[Workload], timeout: float, *, in_place: bool = False
    ) -> Figures:
        """Wait for the addresses and for systemd, then restore all at once; raises naming the first that fails."""
        deadline = time.monotonic() + timeout
        if not self.systemd.running:
            return self._restore_forked(store, workloads, deadline, in_place=in_place)
        try:
            network.bring_up(self.places, self.network_timeout)
            units = [w.unit for w in workloads if w.unit]
            if units:
                self.systemd.await_manager(timeout)
                self._make_ready(store, workloads)
                self.systemd.start(units, now=True)
            for workload in workloads:
                request = self._request(store, workload, deadline, unit=bool(workload.unit), in_place=in_place)
                restorer.put(restorer.request_path(self.places, workload.name, self._tokens[workload.name]), request)
            network.learn(self.places, store, workloads)
            return _told([self._await(workload, deadline) for workload in workloads], in_place=in_place)
        finally:
            nursery.end()

    def _make_ready(self, store: Store, workloads: Sequence[Workload]) -> None:
        """Have there what the sandboxes are made of: the boot comes to it later than to them.

        File systems for temporary files would come over private directories that are made below them; directories in
        /run that are not there yet would not be hidden. tmpfiles.d(5) gives those their modes.
        """
        known = [dumping.read_meta(store, each) for each in workloads]
        for mount in (held.mountpoint for meta in known for held in meta.mounts if not held.hosts):
            if mount.startswith("/run/"):
                (self.places.root / mount.lstrip("/")).mkdir(mode=0o755, parents=True, exist_ok=True)
        if mounted := {unit for meta in known for unit in meta.mounted}:
            self.systemd.start(sorted(mounted), now=True, wait=True)

    def _restore_forked(
        self, store: Store, workloads: Sequence[Workload], deadline: float, *, in_place: bool
    ) -> Figures:
        """Beside an old kernel: no system runs here yet, and the network comes up while criu is at work.

        Both by what the first process has in memory: the disk came a moment ago, and nothing of it was read yet.
        """
        with network.foreign_addresses(self.places), tools_of(self.places.root / "proc/1/root", self.places.root):
            enclosure.prepare(dumping.read_meta(store, each).layout for each in workloads)
            for workload in workloads:
                request = self._request(store, workload, deadline, unit=False, in_place=in_place)
                restorer.restore_forked(self.places, workload.name, request, streams.ends(workload.name))
            network.bring_up(self.places, self.network_timeout)
            network.learn(self.places, store, workloads)
            return _told([self._await(workload, deadline) for workload in workloads], in_place=in_place)

    def _request(
        self, store: Store, workload: Workload, deadline: float, *, unit: bool, in_place: bool
    ) -> restorer.Request:
        directory = store_of(store).path / workload.name / "final"
        meta = dumping.read_meta(store, workload)
        pidfile = starter.pidfile_path(self.places, workload.name)
        pidfile.unlink(missing_ok=True)
        return restorer.Request(
            directory=str(directory),
            streams=dict(meta.streams),
            pidfile=str(pidfile),
            cgroup=workload.cgroup,
            unit=unit,
            deadline=max(1.0, deadline - time.monotonic()),
            in_place=in_place,
            checked=store.kind is StoreKind.WINDOW,
            sandbox=workload.sandbox,
            files=meta.files,
            mounts=meta.mounts,
            cells=meta.cells,
            layout=meta.layout,
            as_strict=str(proc.release(self.places.root)) == self.new_release,
        )

    def _await(self, workload: Workload, deadline: float) -> restorer.Answer:
        path = restorer.answer_path(self.places, workload.name)
        while not path.exists():
            fill.check(self.places, (workload.name,))
            if time.monotonic() > deadline:
                raise KupgradeError(f"{workload.name} was not restored in time", "its restorer gave no answer")
            time.sleep(_POLL)
        answer = decode(restorer.Answer, json.loads(path.read_text()), str(path))
        if answer.error:
            raise KupgradeError(f"{workload.name} could not be restored", answer.error)
        if answer.pid != workload.root_pid:
            raise KupgradeError(f"{workload.name} was restored with another PID", f"{answer.pid}")
        while workload.unit and self.systemd.running and not self.adopted_yet(workload):
            if time.monotonic() > deadline:
                raise KupgradeError(f"{workload.unit} did not adopt its process", "systemd did not take the PID file")
            time.sleep(_POLL * 4)
        return answer

    def adopted_yet(self, workload: Workload) -> bool:
        """Whether systemd has taken the restored root as the unit's main process."""
        unit = self.systemd.show(workload.unit)
        return unit.active == "active" and unit.main_pid == workload.root_pid

    def restored(self, workloads: Sequence[Workload]) -> bool | None:
        """All there and in their cgroup: True; none: False; some, or somebody is still at it: None."""
        if any(restoring.at_work(self.places, each.name) for each in workloads):
            return None
        dumped = self.as_dumped(workloads)
        there = [pid for w in dumped for pid in w.pids if copies.belongs(pid, w)]
        wanted = sum(len(w.pids) for w in dumped)
        if len(there) == wanted:
            return True
        return None if there else False

    def kill(self, workloads: Sequence[Workload]) -> None:
        """SIGKILL to stopped copies: they never run again; the lock keeps their sockets' last words in.

        Whoever still restores ends first.
        """
        for workload in workloads:
            restoring.end(self.places, workload.name)
        copies.end(self.as_dumped(workloads))
        for workload in workloads:
            fill.end(self.places, workload.name)

    def sound(self, workloads: Sequence[Workload]) -> None:
        """See the port."""
        fill.check(self.places, [each.name for each in workloads])

    def filled(self, workloads: Sequence[Workload]) -> bool | None:
        """See the port."""
        names = [each.name for each in workloads]
        if fill.unfilled(self.places, names):
            return False
        try:
            fill.check(self.places, names)
        except KupgradeError:
            return None
        return True

    def await_filled(self, workloads: Sequence[Workload]) -> Figures:
        """See the port."""
        by_name = {each.name: each for each in workloads}
        return fill.await_filled(self.places, list(by_name), lambda name: copies.end_all_of(by_name[name]))

    def _refuse_unfilled(self, workload: Workload) -> None:
        if fill.unfilled(self.places, (workload.name,)):
            why = "the images of an earlier upgrade still fill it"
            raise KupgradeError(f"{workload.name} cannot be dumped yet", why, "Wait until it is filled")

    def thaw_restored(self, workloads: Sequence[Workload]) -> None:
        """See the port; whoever fills memory is told before."""
        fill.note_thaw(self.places, [each.name for each in workloads])
        thawing.thaw(self.store, workloads)

    def running(self, workloads: Sequence[Workload]) -> bool | None:
        """See the port."""
        return thawing.running(self.store, workloads)


def _told(answers: Sequence[restorer.Answer], *, in_place: bool) -> Figures:
    """Of a restore: criu's seconds, and how the memory came."""
    seconds = {"criu_seconds": round(max((each.seconds for each in answers), default=0.0), 4)}
    if not in_place:
        return seconds
    copied = next((each.copied for each in answers if each.copied), "")
    return {**seconds, "memory": f"copied: {copied}" if copied else "in place"}

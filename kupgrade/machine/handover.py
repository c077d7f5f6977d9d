"""The port `Handover`: the old kernel passes everything on, watches, and takes it back when the new one fails.

From the freeze of the file systems to the end nothing here may need a disk: the process is locked in memory, and
what it has to remember is in /run.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from kupgrade.errors import KernelError, KupgradeError, NeedsHumanError
from kupgrade.kernel import blockfs, sysctl
from kupgrade.kernel.blockfs import FreezeResult
from kupgrade.kernel.libc import REBOOT_RESTART, Libc
from kupgrade.machine import buses, faults, shipping
from kupgrade.machine.beside import RealBeside
from kupgrade.machine.places import Places
from kupgrade.machine.serve_out import ServeOut
from kupgrade.machine.spawn_watch import STALL, Watch
from kupgrade.machine.spawner import Spawner
from kupgrade.model import standby
from kupgrade.model.codec import decode, encode
from kupgrade.model.handover import LinkName, Mark, Stage, Standing, TakeOver
from kupgrade.model.machine import PciAddress
from kupgrade.model.pci import Movable
from kupgrade.model.spawn import Instance
from kupgrade.model.workload import Store, Workload
from kupgrade.steps.ports_handover import READY, SHIPPED, DiskFound

NOTE = "handover.json"  # in Places.run
FIRST_SEGMENT = 0x10  # of the buses handed over
READY_TIMEOUT = 120.0  # seconds
ASK_TIMEOUT = 5.0
# Looks are kept rare: the restore needs the processors, and what is seen late costs the way back a moment only.
POLL = 0.02
ASK_EVERY = 0.2
IDLE_LIMIT = 5.0  # seconds in which a new kernel that was told begins


@dataclass(frozen=True, slots=True)
class Note:
    """A handover under way, for a worker that finds it: what was frozen and handed.

    `told`: the order was given. `given`: after the commit the last buses have passed, or may have.
    """

    instance: Instance
    ports: tuple[str, ...]
    store: Store
    told: bool
    deadline: float  # CLOCK_MONOTONIC
    panic: int  # kernel.panic as it was: none may reset the machine under the kernel that takes over
    given: bool = False


@dataclass
class RealHandover:
    """`libc` is the only way to restart the machine; `beside` holds the device."""

    places: Places
    libc: Libc
    beside: RealBeside
    _ports: dict[tuple[str, ...], tuple[Movable, ...]] = field(default_factory=dict)
    _tables: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    _answers: set[str] = field(default_factory=set)
    _locked: bool = False

    # Before the blackout

    def ready(self, modules: Sequence[str], workloads: Sequence[Workload], writes: int, ports: Sequence[str]) -> None:
        """See the port. What can be is done here, so that the blackout has less to do."""
        buses.keep_awake(self._movables(ports), self.places.root)
        buses.check_silence(self._movables(ports), self.places.root)
        self._table(ports)
        self._lock_memory()  # in the blackout it is too late: it takes a moment
        tcp = sorted({port for w in workloads for port in w.tcp_ports})
        udp = sorted({port for w in workloads for port in w.udp_ports})
        with self._watching() as watch:
            client = watch.client()
            client.ask(standby.MODULES, READY_TIMEOUT, names=list(modules))
            found = client.ask(standby.PREPARE, READY_TIMEOUT, writes=writes, tcp=tcp, udp=udp)
        if why := found.get("criu"):
            raise KupgradeError(
                "criu does not work in the new kernel", str(why), "Take another kernel, or the engine kexec"
            )
        if why := found.get("unmade"):
            self._say(f"the new kernel was not tried with a restore: {why}")
        self._answers.add(READY)

    def ship(self, store: Store, since: int) -> int:
        """See the port."""
        with self._watching() as watch:
            shipped = shipping.ship_rounds(watch, Path(store.path), since)
        self.libc.sync()  # leaves the one in the blackout little to write
        self._answers.add(SHIPPED)
        return shipped

    def answered(self, what: str) -> bool:
        """See the port."""
        return what in self._answers

    def ask(self, timeout: float) -> None:
        """See the port."""
        with self._watching() as watch:
            watch.client().ask(standby.PING, timeout)

    # The blackout

    def hand_over(self, store: Store, disk: DiskFound, ports: Sequence[str], deadline: float) -> None:
        """See the port."""
        spawner, instance = self.beside.started()
        movables = self._movables(ports)
        table = self._table(ports)
        order = self._order(store, disk, table)
        marks = [Mark("began", time.time())]
        self._lock_memory()
        try:
            with spawner.watch(instance) as watch:
                spawner.guard(instance)
                marks.append(Mark("watched", time.time()))
                shipping.ship_last(watch, Path(store.path))
                marks.append(Mark("shipped", time.time()))
                until, panic = time.monotonic() + deadline, sysctl.panic_timeout(self.places.root)
                note = Note(instance, tuple(ports), store, told=False, deadline=until, panic=panic)
                self._put(note)
                try:
                    sysctl.set_panic_timeout(0, self.places.root)
                    self._freeze()
                    marks.append(Mark("frozen", time.time()))
                    faults.strike(self.places, "hand-over", "frozen")
                    buses.quiesce(spawner.device, movables, self.places.root)
                    faults.strike(self.places, "hand-over", "quiesced")
                    self._put(replace(note, told=True))
                    marks.append(Mark("quiesced", time.time()))
                    order = replace(order, clock=time.time(), marks=tuple(marks))
                    watch.client().ask(standby.TAKE_OVER, ASK_TIMEOUT, order=encode(order))
                    faults.strike(self.places, "hand-over", "told")
                    self._attend(watch, spawner, note)
                except Exception as error:  # whatever it is: with file systems frozen not even a failure is recorded
                    self._take_back(watch, spawner, note, error)
        finally:
            self._unlock_memory()

    def _lock_memory(self) -> None:
        """Once: what is mapped later is locked, too, and to lock it again costs a fault for each page."""
        if not self._locked:
            self.libc.lock_memory()
            self._locked = True

    def _unlock_memory(self) -> None:
        self._locked = False
        with contextlib.suppress(KernelError):
            self.libc.unlock_memory()

    def _order(self, store: Store, disk: DiskFound, table: bytes) -> TakeOver:
        links: list[LinkName] = []
        with contextlib.suppress(FileNotFoundError):
            saved = json.loads(self.places.addresses.read_text())
            links = [LinkName(link["mac"], link["name"]) for link in saved["links"]]
        environment = {"KUPGRADE_FAULTS": "1"} if faults.passed_on() else {}
        encoded = base64.b64encode(table).decode()
        return TakeOver(
            encoded, disk.uuid, disk.fstype, disk.options, store.path, tuple(links), time.time(), environment
        )

    def _freeze(self) -> None:
        """Everything on disk, and every writer blocked; the root file system comes last."""
        self.libc.sync()
        for mount in blockfs.to_freeze(self.places.root):
            found = blockfs.freeze(self.libc, Path(mount.mountpoint))
            if found is FreezeResult.UNSUPPORTED and mount.mountpoint == "/":
                raise KupgradeError("The root file system cannot be frozen", "it would change hands in use")

    def _thaw(self) -> None:
        for mount in reversed(blockfs.to_freeze(self.places.root)):
            with contextlib.suppress(KernelError):
                blockfs.thaw(self.libc, Path(mount.mountpoint))

    def _attend(self, watch: Watch, spawner: Spawner, note: Note) -> None:
        """Until this kernel ends. Raises KupgradeError when the new one failed, died, stood still or was too slow.

        What goes wrong when the commit flag is set already is judged as after the commit: less is a reason then.
        """
        try:
            self._await_commit(watch, note)
        except KupgradeError:
            if not watch.channel.committed:
                raise

        def remember(given: bool) -> None:
            self._put(replace(note, told=True, given=given))

        here = self.places.root
        ServeOut(watch, spawner, note.instance, note.store, here, self._end, self._say, note.given, remember).run()

    def _await_commit(self, watch: Watch, note: Note) -> None:
        pulse = watch.pulse(STALL)
        client, channel = watch.client(pulse), watch.channel
        began = asked = time.monotonic()
        while not channel.committed:
            watch.check_alive()
            pulse.check()
            now = time.monotonic()
            if now > note.deadline:
                raise KupgradeError("The new kernel did not commit in time", "its deadline is over")
            if self.places.rollback_request.exists():
                raise KupgradeError("The operator asked to roll back", self.places.rollback_request.read_text().strip())
            if now - asked > ASK_EVERY:
                asked = now
                standing = decode(Standing, client.ask(standby.STAGE, ASK_TIMEOUT)["standing"], "standing")
                if standing.stage is Stage.FAILED:
                    raise KupgradeError("The new kernel gave up", standing.why)
                if standing.stage is Stage.WAITING and now - began > IDLE_LIMIT:
                    raise KupgradeError("The new kernel did not begin", "it says that it waits for the order")
            time.sleep(POLL)

    def _take_back(self, watch: Watch, spawner: Spawner, note: Note, error: Exception) -> None:
        """Fence, THEN look at the commit flag: set, and this kernel is dead; unset, everything is taken back."""
        spawner.fence(note.instance)
        if watch.channel.committed:
            self._end(error)
        try:
            buses.resume(spawner.device, self._movables(note.ports), self.places.root)
        except KupgradeError:  # the disk may be back when another device is not: frozen, that could not be recorded
            self._thaw()
            raise
        self._thaw()
        sysctl.set_panic_timeout(note.panic, self.places.root)
        self._put(None)
        raise KupgradeError("The new kernel did not take over", str(error)) from error

    def settle(self) -> None:
        """See the port. What failed is printed: the worker then goes on as after any crossing that did not happen."""
        note = self._noted()
        if note is None:
            return
        self._lock_memory()
        spawner = self.beside.started()[0]
        try:
            with spawner.watch(note.instance) as watch:
                spawner.guard(note.instance)
                try:
                    if not note.told:
                        raise KupgradeError("The worker was killed before the new kernel was told")
                    self._attend(watch, spawner, note)
                except Exception as error:  # as in hand_over
                    self._take_back(watch, spawner, note, error)
        except KupgradeError as error:
            if self._noted() is not None:
                raise NeedsHumanError("A handover could not be taken back", str(error)) from error
            print(f"kupgrade: {error}", flush=True)  # noqa: T201
        finally:
            self._unlock_memory()

    # After the commit

    def _end(self, error: Exception) -> NoReturn:
        """The new kernel died with the disk its own: the host has crashed, and is restarted."""
        self._say(f"the new kernel died after its commit, the machine is restarted: {error}")
        self.libc.reboot(REBOOT_RESTART)
        raise NeedsHumanError("The machine did not restart", "the new kernel died after its commit", "Reset it")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            fd = os.open("/dev/kmsg", os.O_WRONLY)
            os.write(fd, f"kupgrade: {text}\n".encode())
            os.close(fd)

    # What is noted

    def _watching(self) -> Watch:
        spawner, instance = self.beside.started()
        return spawner.watch(instance)

    def _movables(self, ports: Sequence[str]) -> tuple[Movable, ...]:
        key = tuple(ports)
        if key not in self._ports:
            self._ports[key] = buses.find([PciAddress.parse(port) for port in ports], self.places.root)
        return self._ports[key]

    def _table(self, ports: Sequence[str]) -> bytes:
        key = tuple(ports)
        if key not in self._tables:
            self._tables[key] = buses.table(self._movables(ports), FIRST_SEGMENT, self.places.root)
        return self._tables[key]

    def _put(self, note: Note | None) -> None:
        path = self.places.run / NOTE
        if note is None:
            path.unlink(missing_ok=True)
            return
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(encode(note)))
        temporary.replace(path)

    def _noted(self) -> Note | None:
        path = self.places.run / NOTE
        try:
            return decode(Note, json.loads(path.read_text()), str(path))
        except FileNotFoundError:
            return None

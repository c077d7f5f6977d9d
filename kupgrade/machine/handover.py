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

from kupgrade.errors import KernelError, KupgradeError, NeedsHumanError
from kupgrade.kernel import blockfs
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.libc import REBOOT_RESTART, Libc
from kupgrade.machine import buses, faults, retirement, shipping
from kupgrade.machine.beside import RealBeside
from kupgrade.machine.images import store_of
from kupgrade.machine.places import Places
from kupgrade.machine.spawn_watch import Watch
from kupgrade.machine.spawner import Spawner
from kupgrade.model import standby
from kupgrade.model.codec import decode, encode
from kupgrade.model.handover import LinkName, Stage, Standing, TakeOver
from kupgrade.model.machine import PciAddress
from kupgrade.model.pci import Movable
from kupgrade.model.spawn import Instance
from kupgrade.model.workload import Store, Workload
from kupgrade.steps.ports_handover import DiskFound

NOTE = "handover.json"  # in Places.run
FIRST_SEGMENT, LATER_SEGMENT = 0x10, 0x40  # of the buses handed over, and of those that follow at the retirement
READY_TIMEOUT = 120.0  # seconds
ASK_TIMEOUT = 5.0
# Looks are kept rare: the restore needs the processors, and what is seen late costs the way back a moment only.
POLL = 0.02
ASK_EVERY = 0.2
STALL = 3.0  # seconds without a heartbeat: an emulated or overloaded host may well take one
IDLE_LIMIT = 5.0  # seconds in which a new kernel that was told begins


@dataclass(frozen=True, slots=True)
class Note:
    """A handover under way, for a worker that finds it: what was frozen and handed. `told`: the order was given."""

    instance: Instance
    ports: tuple[str, ...]
    store: Store
    told: bool
    deadline: float  # CLOCK_MONOTONIC
    panic: int  # kernel.panic as it was: none may reset the machine under the kernel that takes over


@dataclass
class RealHandover:
    """`libc` is the only way to restart the machine; `beside` holds the device."""

    places: Places
    libc: Libc
    beside: RealBeside
    _ports: dict[tuple[str, ...], tuple[Movable, ...]] = field(default_factory=dict)
    _tables: dict[tuple[str, ...], bytes] = field(default_factory=dict)

    # Before the blackout

    def ready(self, modules: Sequence[str], workloads: Sequence[Workload], writes: int, ports: Sequence[str]) -> None:
        """See the port. What can be is done here, so that the blackout has less to do."""
        buses.keep_awake(self._movables(ports), self.places.root)
        self._table(ports)
        self.libc.lock_memory()  # again in the blackout, by whoever works then; this takes the moment out of it
        tcp = sorted({port for w in workloads for port in w.tcp_ports})
        udp = sorted({port for w in workloads for port in w.udp_ports})
        with self._watching() as watch:
            client = watch.client()
            client.ask(standby.MODULES, READY_TIMEOUT, names=list(modules))
            client.ask(standby.CRIU_CHECK, READY_TIMEOUT)
            found = client.ask(standby.PREPARE, READY_TIMEOUT, writes=writes, tcp=tcp, udp=udp)
        if found.get("criu"):
            raise KupgradeError(
                "criu does not work in the new kernel", str(found["criu"]), "See criu check --all there"
            )

    def ship(self, store: Store, since: int) -> int:
        """See the port."""
        with self._watching() as watch:
            shipped = shipping.ship_rounds(watch, Path(store.path), since)
        self.libc.sync()  # leaves the one in the blackout little to write
        return shipped

    # The blackout

    def hand_over(self, store: Store, disk: DiskFound, ports: Sequence[str], deadline: float) -> None:
        """See the port."""
        spawner, instance = self.beside.started()
        movables = self._movables(ports)
        table = self._table(ports)
        order = self._order(store, disk, table)
        self.libc.lock_memory()
        try:
            with spawner.watch(instance) as watch:
                spawner.guard(instance)
                shipping.ship_last(watch, Path(store.path))
                until, panic = time.monotonic() + deadline, int(self._panic.read_text())
                note = Note(instance, tuple(ports), store, told=False, deadline=until, panic=panic)
                self._put(note)
                try:
                    self._panic.write_text("0\n")
                    self._freeze()
                    faults.strike(self.places, "hand-over", "frozen")
                    buses.quiesce(spawner.device, movables)
                    faults.strike(self.places, "hand-over", "quiesced")
                    self._put(replace(note, told=True))
                    order = replace(order, clock=time.time())
                    watch.client().ask(standby.TAKE_OVER, ASK_TIMEOUT, order=encode(order))
                    faults.strike(self.places, "hand-over", "told")
                    self._attend(watch, spawner, note)
                except Exception as error:  # whatever it is: with file systems frozen not even a failure is recorded
                    self._take_back(watch, spawner, note, error)
        finally:
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
            blockfs.freeze(self.libc, Path(mount.mountpoint))

    def _thaw(self) -> None:
        for mount in reversed(blockfs.to_freeze(self.places.root)):
            with contextlib.suppress(KernelError):
                blockfs.thaw(self.libc, Path(mount.mountpoint))

    def _attend(self, watch: Watch, spawner: Spawner, note: Note) -> None:
        """Until this kernel ends. Raises KupgradeError when the new one failed, died, stood still or was too slow."""
        client, channel = watch.client(), watch.channel
        began = asked = last_beat = time.monotonic()
        beats = watch.beats()
        while not channel.committed:
            watch.check_alive()
            now = time.monotonic()
            if (seen := watch.beats()) != beats:
                beats, last_beat = seen, now
            elif now - last_beat > STALL:
                raise KupgradeError("The new kernel stands still", f"no heartbeat for {STALL:g} s")
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
        self._serve_out(watch, spawner, note)

    def _take_back(self, watch: Watch, spawner: Spawner, note: Note, error: Exception) -> None:
        """Fence, THEN look at the commit flag: set, and this kernel is dead; unset, everything is taken back."""
        spawner.fence(note.instance)
        if watch.channel.committed:
            self._end(error)
        buses.resume(spawner.device, self._movables(note.ports))
        self._thaw()
        self._panic.write_text(f"{note.panic}\n")
        self._put(None)
        raise KupgradeError("The new kernel did not take over", str(error)) from error

    def settle(self) -> None:
        """See the port. What failed is printed: the worker then goes on as after any crossing that did not happen."""
        note = self._noted()
        if note is None:
            return
        self.libc.lock_memory()
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
            with contextlib.suppress(KernelError):
                self.libc.unlock_memory()

    # After the commit

    def _serve_out(self, watch: Watch, spawner: Spawner, note: Note) -> None:
        """The new kernel serves. Nothing is left to do here but to give it the rest when it asks, and to end.

        Should it die now it is a crash of the host: the machine is restarted, as nobody else could do it. Nothing that
        goes wrong here may lead out of here: the way out is to fence, and that would stop the kernel that serves.
        """
        client = watch.client()
        wiped = asked = False
        while True:
            try:
                watch.check_alive()
                if not wiped:
                    wiped = True
                    store_of(note.store).wipe()
                standing = decode(Standing, client.ask(standby.STAGE, ASK_TIMEOUT * 12)["standing"], "standing")
                if standing.stage is Stage.RETIRE and not asked:
                    asked = True
                    self._retire(watch, spawner.device, note.instance, standing.ports)
            except Exception as error:
                self._say(f"{type(error).__name__}: {error}")
                try:
                    watch.check_alive()
                except KupgradeError as dead:
                    spawner.fence(note.instance)
                    self._end(dead)
            time.sleep(ASK_EVERY)

    def _retire(self, watch: Watch, device: Kspawn, instance: Instance, ports: Sequence[str]) -> None:
        named = [PciAddress.parse(port) for port in ports]

        def told(part: str, seconds: float) -> None:
            self._say(f"passed on: {part}, {seconds:.3f} s")

        retirement.retire(device, instance, watch.client(), named, LATER_SEGMENT, self.places.root, told)

    def _end(self, error: Exception) -> None:
        """The new kernel died with the disk its own: the host has crashed, and is restarted."""
        self._say(f"the new kernel died after its commit, the machine is restarted: {error}")
        self.libc.reboot(REBOOT_RESTART)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            fd = os.open("/dev/kmsg", os.O_WRONLY)
            os.write(fd, f"kupgrade: {text}\n".encode())
            os.close(fd)

    # What is noted

    @property
    def _panic(self) -> Path:
        return self.places.root / "proc/sys/kernel/panic"

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

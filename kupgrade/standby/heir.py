"""How a spawned kernel comes into the CPUs and the memory of the one that it was started beside.

The old kernel cannot see its own end through. So it leaves word beforehand, and a thread here waits until its CPUs have
come to this kernel's park loop, all at once: from then on nobody else runs on this machine.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import acpi, acpi_devices, cpu, cpu_numbers, memory_blocks, park_code
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.libc import read_text, reported
from kupgrade.model.codec import decode, encode
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import BlockState
from kupgrade.model.standby import INHERITED_FILE, Inherited, Legacy, Stage

LEGACY_FILE = "run/kupgrade/legacy.json"  # a Legacy that is expected, for an agent that comes after a killed one
POLL = 0.01  # seconds between looks for the old kernel's end
BLOCK_PATIENCE = 60.0  # seconds for a table's memory to be online
PARK_PATIENCE = 60.0  # seconds from the first CPU in the loop to the last: a hypervisor may stop one for long
GIVE_UP_PATIENCE = 5.0  # seconds for a look that has begun
UNSAFE = "memory: a CPU may still run in it, in the old kernel's code"
# The kernel describes memory it is given in memory it has, one byte in 64: at most a quarter of what is free.
GROWTH = 16


@contextlib.contextmanager
def _mapped(device: Kspawn, where: MemoryRange) -> Iterator[memoryview]:
    start = where.start // mmap.PAGESIZE * mmap.PAGESIZE
    mapping = device.map(start, where.end - start, writable=False)
    with contextlib.closing(mapping), memoryview(mapping) as view, view[where.start - start :] as part:
        yield part


def waiting(device: Kspawn, park: int) -> tuple[int, ...]:
    """The APIC IDs of the CPUs in the park loop at `park`. Raises KernelError and BadInputError."""
    with _mapped(device, MemoryRange(park, park_code.PAGE)) as page:
        slots = park_code.slots_of(page)
    with _mapped(device, slots) as table:
        return park_code.waiting(table)


def bring_online(device: Kspawn, park: int, apic_id: int, root: Path = Path("/")) -> int:
    """Run on a CPU that waits in the park loop; returns its number. Done as well when this kernel runs on it.

    Raises KupgradeError for one that does not wait: the kernel would wait for it for ever. KernelError.
    """
    number = cpu_numbers.by_apic_id(root).get(apic_id)
    if number is None:
        raise KupgradeError(f"This kernel knows no CPU with APIC ID {apic_id}", "its MADT does not list it")
    if not cpu.is_online(number, root):
        if apic_id not in waiting(device, park):
            raise KupgradeError(f"CPU {number} cannot come online", f"APIC ID {apic_id} is not in the park loop")
        cpu.bring_online(number, root)
    return number


def memory_facts(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    lines = (line.partition(":") for line in read_text(root / "proc/meminfo").splitlines())
    return {key: int(value.split()[0]) * 1024 for key, _, value in lines if value.endswith(" kB")}


@dataclass
class Heir:
    """The one inheritance of this kernel. `pause` and `clock` as in time."""

    device: Kspawn
    root: Path = Path("/")
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    found: Inherited = field(default_factory=Inherited)
    _thread: threading.Thread | None = None
    _given_up: threading.Event = field(default_factory=threading.Event)

    def expect(self, legacy: Legacy) -> None:
        """Wait for the old kernel's end in a thread, and take all it leaves. Another call replaces the first.

        Raises KupgradeError when the inheritance has begun, KernelError when the park loop cannot be seen.
        """
        self.give_up()
        waiting(self.device, legacy.park)
        self._write(LEGACY_FILE, legacy)
        self._given_up = threading.Event()
        self.found = Inherited(Stage.WAITING)
        self._thread = threading.Thread(target=self._run, args=(legacy, self._given_up), name="heir")
        self._thread.start()

    def give_up(self) -> None:
        """Expect nothing any more. Raises KupgradeError when the inheritance has begun."""
        self._given_up.set()
        if self._thread is not None:
            self._thread.join(GIVE_UP_PATIENCE)
        if self.found.stage not in (Stage.NONE, Stage.WAITING):
            raise KupgradeError("The old kernel is gone", f"its inheritance is {self.found.stage.value}")
        (self.root / LEGACY_FILE).unlink(missing_ok=True)
        self.found = Inherited()

    def resume(self) -> None:
        """Expect what an agent that was killed expected. One that was killed while it took things is told: no more is
        taken, for it is not known what it had begun."""
        if not (self.root / LEGACY_FILE).exists():
            return
        if (self.root / INHERITED_FILE).exists():
            found = decode(Inherited, json.loads(read_text(self.root / INHERITED_FILE)), INHERITED_FILE)
            if found.stage is not Stage.DONE:
                why = f"the agent was killed when {found.doing or 'it began'}"
                found = replace(found, stage=Stage.DONE, doing="", missing=(*found.missing, why))
            self.found = found
            self._tell()
        else:
            self.expect(decode(Legacy, json.loads(read_text(self.root / LEGACY_FILE)), LEGACY_FILE))

    def _run(self, legacy: Legacy, given_up: threading.Event) -> None:
        while not given_up.is_set():
            try:
                over = {*legacy.cpus} & {*waiting(self.device, legacy.park)}
            except KupgradeError as error:  # a loop that cannot be seen now is looked at again: it is not the end
                self.found = replace(self.found, doing=str(error))
            else:
                if over:
                    self.take(legacy)
                    return
            self.pause(POLL)

    def take(self, legacy: Legacy) -> None:
        """The old kernel is gone: its last CPUs and its memory. What does not come is told, in the file and the log."""
        began = self.clock()
        missing: list[str] = []
        self.found = Inherited(
            Stage.TAKING,
            cpus_before=str(cpu.masks(self.root).online),
            memory_before=memory_facts(self.root).get("MemTotal", 0),
        )
        self._now("its last CPUs come")
        left = self._await_cpus(legacy)
        try:
            missing += self._take_cpus(legacy)
        except Exception as error:  # whatever it is: who waits for the end of this must not wait for ever
            missing.append(f"CPUs: {error}")
        try:
            missing += self._take_memory(legacy.memory) if left else [UNSAFE]
        except Exception as error:  # as above
            missing.append(f"memory: {error}")
        self.found = replace(
            self.found,
            stage=Stage.DONE,
            doing="",
            cpus=str(cpu.masks(self.root).online),
            memory=memory_facts(self.root).get("MemTotal", 0),
            seconds=round(self.clock() - began, 3),
            missing=tuple(missing),
        )
        self._tell()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"kupgrade: inherited {json.dumps(encode(self.found))}\n")
            sys.stderr.flush()

    def _now(self, doing: str) -> None:
        """Told in the file: should this never end, it is known where."""
        self.found = replace(self.found, doing=doing)
        self._tell()

    def _take_cpus(self, legacy: Legacy) -> list[str]:
        """Run on all of them; those that did not come, in words."""
        missing = []
        for apic_id in legacy.cpus:
            self._now(f"the CPU with APIC ID {apic_id} comes online")
            try:
                bring_online(self.device, legacy.park, apic_id, self.root)
            except KupgradeError as error:
                missing.append(str(error))
        return missing

    def _await_cpus(self, legacy: Legacy) -> bool:
        """Whether each has left the old kernel's memory: it waits in the loop, or runs here already."""
        deadline = self.clock() + PARK_PATIENCE
        while self.clock() < deadline:
            with contextlib.suppress(KupgradeError):  # a loop that cannot be seen now is looked at again
                here = cpu.cpuinfo(self.root).apic_ids.values()
                if {*legacy.cpus} <= {*waiting(self.device, legacy.park), *here}:
                    return True
            self.pause(POLL)
        return False

    def _take_memory(self, ranges: tuple[MemoryRange, ...]) -> list[str]:
        """Add all whole blocks, in pieces that what is free can describe; what did not come, in words."""
        size, number, missing = memory_blocks.block_size(self.root), 0, []
        for each in memory_blocks.whole_blocks(ranges, size):
            at = each.start
            while at < each.end:
                room = memory_facts(self.root).get("MemFree", 0) * GROWTH // size * size
                piece = MemoryRange(at, min(each.end - at, max(room, size)))
                device = acpi_devices.memory_device(number, [piece])
                self._now(f"the memory {piece} is added")
                try:
                    self.device.load_ssdt(acpi.ssdt(acpi_devices.system_bus(device)))
                    self._await_online(piece, size)
                except KupgradeError as error:
                    missing.append(f"{piece}: {error}")
                number, at = number + 1, piece.end
        return missing

    def _await_online(self, piece: MemoryRange, size: int) -> None:
        """The kernel finds the memory by itself, some time after the table, and may leave it offline."""
        deadline = self.clock() + BLOCK_PATIENCE
        for number in memory_blocks.numbers(piece, size):
            self._now(f"memory block {number} comes online")
            while (state := memory_blocks.state(number, self.root)) is not BlockState.ONLINE:
                if self.clock() > deadline:
                    raise KupgradeError(f"Memory block {number} is not there", f"it is {state.value}")
                if state is BlockState.OFFLINE:
                    with contextlib.suppress(KernelError):  # the kernel may be about to do so itself
                        memory_blocks.bring_online(number, root=self.root)
                        continue
                self.pause(POLL)

    def _tell(self) -> None:
        self._write(INHERITED_FILE, self.found)

    def _write(self, name: str, value: object) -> None:
        path = self.root / name
        with contextlib.suppress(KernelError), reported("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(".new")
            half.write_text(json.dumps(encode(value)) + "\n")
            half.rename(path)

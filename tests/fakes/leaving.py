"""A machine whose kernel ends: CPUs that go to park loops, memory, the module, and an agent that takes over."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from kupgrade.core import box
from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import acpi, park_code
from kupgrade.kernel.kspawn import Entry, Info
from kupgrade.machine.standby_client import AgentError
from kupgrade.model import standby
from kupgrade.model.codec import decode

MIB = 1 << 20
BLOCK = 128 * MIB
NEW, OWN = 8 * BLOCK, 20 * BLOCK  # where the boxes begin
TABLES = box.PAGE_TABLES
IOMEM = f"00001000-0009ffff : System RAM\n00100000-{32 * BLOCK - 1:08x} : System RAM\n"


class Machine:
    """CPUs, and memory as a sparse file. APIC IDs are twice the numbers that the old kernel gave the CPUs.

    A CPU in a park loop says so in its slot.
    """

    def __init__(self, folder: Path, bsp: int, boot: int) -> None:
        self.file = os.open(folder / "memory", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.file, 1 << 36)
        self.root = folder / "root"
        self.bsp, self.boot = bsp, boot
        self.calls: list[str] = []
        self.errors: dict[str, int] = {}
        self.started: set[int] = set()
        self.online = {0, 1, 2}
        self.now = 0.0
        self.write()

    # memory

    def loop(self, base: int, ids: tuple[int, ...]) -> None:
        at = base + box.PARK
        os.pwrite(self.file, park_code.park_page(base + TABLES, at + park_code.PAGE, len(ids)), at)
        os.pwrite(self.file, park_code.slot_table(ids), at + park_code.PAGE)

    def flag(self, page: int, apic_id: int, value: int) -> bool:
        _, slots, count = park_code.PARAMETERS.unpack(
            os.pread(self.file, park_code.PARAMETERS.size, page + park_code.PARAMETERS_OFFSET)
        )
        for at in range(slots, slots + count * park_code.SLOT.size, park_code.SLOT.size):
            found, waits = struct.unpack("<II", os.pread(self.file, 8, at))
            if found == apic_id:
                os.pwrite(self.file, struct.pack("<I", value), at + park_code.SLOT_PARKED_OFFSET)
                return bool(waits)
        return False

    def pause(self, seconds: float) -> None:
        self.now += seconds

    # kspawn

    def _fail(self, call: str) -> None:
        if number := self.errors.get(call):
            raise KernelError(call, "", number)

    def info(self) -> Info:
        return Info(1, 0, 0x3F, 0x10000, 0x5000, 2_400_000, self.bsp, self.boot, 1, 0xFE, 0)

    def start(self, apic_id: int, entry: Entry, *, foreign: bool = False, own: bool = False) -> None:
        self.calls.append(f"start {apic_id}{' own' if own else ''}")
        assert apic_id != self.bsp
        self._fail(f"start {apic_id}")
        if apic_id in self.started:
            raise KernelError("KSPAWN_START", "", errno.EALREADY)
        if not own:
            self.started.add(apic_id)
        assert entry.cr3 == entry.rip - box.PARK + TABLES
        if f"deaf {apic_id}" not in self.errors:
            self.flag(entry.rip, apic_id, 1)

    def stop(self, apic_id: int, *, foreign: bool = False) -> None:
        self.calls.append(f"stop {apic_id}")
        assert apic_id != self.bsp
        self._fail(f"stop {apic_id}")
        self.started.discard(apic_id)
        for base in (NEW, OWN):
            self.flag(base + box.PARK, apic_id, 0)

    def leave(self, entry: Entry, *, everyone: bool = False) -> None:
        assert everyone, "the module refuses with EBUSY"
        self.calls.append("leave")
        self._fail("leave")
        for number in self.online:
            self.flag(entry.rip, self.apic(number), 1)

    def map(self, address: int, length: int, *, writable: bool = True) -> mmap.mmap:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(self.file, length, mmap.MAP_SHARED, protection, offset=address)

    # the old kernel

    def write(self) -> None:
        infos = (f"processor\t: {n}\napicid\t\t: {self.apic(n)}\nflags\t: lm\n" for n in sorted(self.online))
        online = ",".join(map(str, sorted(self.online)))
        for name, text in (("proc/cpuinfo", "\n".join(infos)), ("sys/devices/system/cpu/online", online)):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)

    def apic(self, number: int) -> int:
        """In a spawned kernel the CPU that booted it comes first."""
        order = [self.boot, *(each for each in (0, 2, 4, 8, 6) if each != self.boot)]
        return order[number]

    def turn(self, number: int, on: bool) -> None:
        self.calls.append(f"{'on' if on else 'off'} {self.apic(number)}")
        if on:
            self._fail(f"on {number}")
            assert self.boot == self.bsp or self.flag(OWN + box.PARK, self.apic(number), 0), "it would wait for ever"
            self.online.add(number)
        elif number in self.online:
            self._fail(f"off {number}")
            self.online.discard(number)
            if self.boot != self.bsp:
                self.flag(OWN + box.PARK, self.apic(number), 1)
        self.write()

    # the new kernel's agent

    def ask(self, verb: str, _timeout: float = 10.0, **arguments: Any) -> dict[str, Any]:
        self.calls.append(verb)
        if verb in self.errors:
            raise (AgentError if self.errors[verb] else KupgradeError)(f"{verb}: no")
        if verb == standby.INHERIT:
            self.legacy = decode(standby.Legacy, arguments["legacy"])
        return {}


def a_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, bsp: int, boot: int) -> Machine:
    found = Machine(folder, bsp, boot)
    found.loop(NEW, (6, 0, 2, 4, 8))
    (found.root / "proc/iomem").write_text(IOMEM)
    own = f"kupgrade.box={OWN:#x}:{4 * BLOCK:#x}" if boot != bsp else ""
    (found.root / "proc/cmdline").write_text(f"quiet {own}\n")
    tables = found.root / "sys/firmware/acpi/tables"
    tables.mkdir(parents=True)
    (tables / "APIC").write_bytes(acpi.madt((boot, *(each for each in (0, 2, 4, 8, 6) if each != boot)), 0, 0))
    monkeypatch.setattr("kupgrade.kernel.cpu.take_offline", lambda number, _root: found.turn(number, False))
    monkeypatch.setattr("kupgrade.kernel.cpu.bring_online", lambda number, _root: found.turn(number, True))
    return found

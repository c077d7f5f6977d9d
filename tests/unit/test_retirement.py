"""The old kernel's end: every CPU goes where it should, the rest is promised, and a failure leaves all as it was."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kupgrade.core import box
from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import acpi, park_code
from kupgrade.kernel.kspawn import Entry, Info
from kupgrade.machine import buses, own_park, retirement
from kupgrade.machine.own_park import Loop
from kupgrade.machine.retirement import Retirement
from kupgrade.machine.standby_client import AgentError
from kupgrade.model import standby
from kupgrade.model.codec import decode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import Instance

MIB = 1 << 20
BLOCK = 128 * MIB
NEW, OWN = 8 * BLOCK, 20 * BLOCK  # where the boxes begin
TABLES = box.PAGE_TABLES
IOMEM = f"00001000-0009ffff : System RAM\n00100000-{32 * BLOCK - 1:08x} : System RAM\n"


class Machine:
    """CPUs, and memory as a sparse file. APIC IDs are twice the numbers that the old kernel gave the CPUs.

    A CPU in a park loop says so in its slot; it takes its mail whenever somebody waits.
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
        self.new_online: set[int] = {6}
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
        for base in (NEW, OWN):
            command, apic_id, vector = park_code.MAILBOX.unpack(os.pread(self.file, park_code.MAILBOX.size, base))
            if command == park_code.COMMAND_WAKEUP and self.flag(base + box.PARK, apic_id, 0):
                os.pwrite(self.file, bytes(2), base)
                self.calls.append(f"mail {apic_id}")
                code = os.pread(self.file, 25, vector)
                if code[:2] == b"\x48\xb8":
                    cr3, vector = struct.unpack("<2xQ5xQ2x", code)
                    assert cr3 == vector - box.PARK + TABLES
                if "mail" not in self.errors:
                    self.flag(vector, apic_id, 1)

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
        self.started.discard(apic_id)
        for base in (NEW, OWN):
            self.flag(base + box.PARK, apic_id, 0)

    def leave(self, entry: Entry) -> None:
        assert len(self.online) == 1, "the module refuses with EBUSY"
        self.calls.append("leave")
        self._fail("leave")
        self.flag(entry.rip, self.boot, 1)

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
        self.calls.append(f"{verb} {arguments['apic_id']}" if verb == standby.ONLINE_CPU else verb)
        if verb in self.errors:
            raise (AgentError if self.errors[verb] else KupgradeError)(f"{verb}: no")
        if verb == standby.ONLINE_CPU:
            assert self.flag(arguments["park"], arguments["apic_id"], 0)
            self.new_online.add(arguments["apic_id"])
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


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Started by the firmware. CPUs 0 to 2 are online, APIC ID 8 was offline before, 6 runs the new kernel."""
    found = a_machine(tmp_path, monkeypatch, 0, 0)
    yield found
    os.close(found.file)


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Itself spawned: its CPU 0 has APIC ID 2, the bootstrap processor is its CPU 1, which came by mailbox."""
    found = a_machine(tmp_path, monkeypatch, 0, 2)
    found.loop(OWN, (2, 0, 4, 8, 6))
    yield found
    os.close(found.file)


def a_retirement(machine: Machine) -> Retirement:
    instance = Instance(
        upgrade=UpgradeId("20261121-041503-9f2c1a"),
        epoch=2,
        generation=1,
        box=MemoryRange(NEW, 4 * BLOCK),
        low=MemoryRange(0x20000, 0x30000),
        window=MemoryRange(NEW + 3 * BLOCK, BLOCK),
        root_image=None,
        registers=NEW + box.REGISTERS,
        park=NEW + box.PARK,
        page_tables=NEW + TABLES,
        apic_ids=(6,),
        later=(0, 2, 4, 8),
        bsp=machine.bsp,
    )
    device: Any = machine
    return Retirement(device, instance, device, machine.root, machine.pause, lambda: machine.now)


def end(found: Retirement) -> None:
    """The parts in the order of `retire`."""
    found.give_cpus()
    found.promise()
    with pytest.raises(KupgradeError, match="did not end"):
        found.leave()


def test_a_kernel_of_the_firmware_gives_all_and_ends_on_the_bootstrap_processor(first: Machine) -> None:
    """What it did not run on is parked, no more; the last CPU is in the loop only once this kernel is gone."""
    end(a_retirement(first))
    cpus = ["off 2", "start 2", "online-cpu 2", "off 4", "start 4", "online-cpu 4", "start 8"]
    assert first.calls == [*cpus, "inherit", "leave"]
    assert first.legacy.cpus == (0,)
    assert first.new_online == {6, 2, 4}


def test_the_promise_is_all_memory_but_the_new_box(first: Machine) -> None:
    """From 1 MiB on."""
    memory = a_retirement(first).legacy().memory
    assert memory == (MemoryRange.between(MIB, NEW), MemoryRange.between(NEW + 4 * BLOCK, 32 * BLOCK))


def test_a_kernel_in_a_box_leaves_the_whole_box(second: Machine) -> None:
    """Control area and window, which are no RAM to it, end with it."""
    iomem = f"00100000-{OWN - 1:08x} : System RAM\n{OWN + 2 * MIB:08x}-{OWN + 3 * BLOCK - 1:08x} : System RAM\n"
    (second.root / "proc/iomem").write_text(iomem)
    assert a_retirement(second).legacy().memory[-1] == MemoryRange.between(NEW + 4 * BLOCK, OWN + 4 * BLOCK)


@pytest.mark.parametrize("fault", ["deaf 2", "start 2"])
def test_a_cpu_that_does_not_come_is_this_kernels_again(first: Machine, fault: str) -> None:
    """The error says which; those that passed before stay, and trying again goes on."""
    first.errors[fault] = errno.ETIMEDOUT
    with pytest.raises(KupgradeError):
        a_retirement(first).give_cpus()
    assert (first.online, first.started) == ({0, 1, 2}, set())
    first.errors.clear()
    end(a_retirement(first))
    assert first.new_online == {6, 2, 4}


def test_a_cpu_that_the_new_kernel_refuses_is_this_kernels_again(first: Machine) -> None:
    """It waits in the loop still, so nobody runs on it."""
    first.errors[standby.ONLINE_CPU] = 1
    with pytest.raises(AgentError):
        a_retirement(first).give_cpus()
    assert first.online == {0, 1, 2}
    assert first.calls[-2:] == ["stop 2", "on 2"]


def test_an_interrupted_passage_goes_on(first: Machine) -> None:
    """A CPU that was started and not brought online there is found waiting; one that runs there is left alone."""
    first.turn(1, False)
    first.start(2, Loop.of(first, a_retirement(first).instance).entry)  # type: ignore[arg-type]
    end(a_retirement(first))
    assert first.new_online == {6, 2, 4}


def test_a_cpu_that_is_not_there_is_passed_over(first: Machine) -> None:
    """The firmware may list more than there are."""
    first.errors["start 8"] = errno.ENODEV
    end(a_retirement(first))


def test_a_cpu_that_the_new_kernel_does_not_know_is_stopped(first: Machine) -> None:
    """It must not go on in memory that will be overwritten."""
    tables = first.root / "sys/firmware/acpi/tables/APIC"
    tables.write_bytes(acpi.madt((0, 2, 4, 8, 6, 10), 0, 0))
    end(a_retirement(first))
    assert "stop 10" in first.calls


def test_a_spawned_kernel_sends_the_bootstrap_processor_by_mail(second: Machine) -> None:
    """It never gets INIT; the kernel ends on its own CPU 0."""
    end(a_retirement(second))
    assert second.calls[-4:] == ["inherit", "off 0", "mail 0", "leave"]
    assert second.legacy.cpus == (0, 2)
    assert second.new_online == {6, 4}
    assert a_retirement(second).loop.waiting() == (0, 2, 8)


def test_an_end_that_is_refused_fetches_the_bootstrap_processor(second: Machine) -> None:
    """By the new kernel's mailbox, into this one's loop, and online."""
    second.errors["leave"] = errno.EBUSY
    found = a_retirement(second)
    found.give_cpus()
    for _ in range(2):
        with pytest.raises(KernelError):
            found.leave()
        assert second.calls[-3:] == ["leave", "mail 0", "on 0"]
        assert second.online == {0, 1}


def test_a_cpu_comes_back_to_a_spawned_kernel_through_its_loop(second: Machine) -> None:
    """After INIT it listens to no mailbox: it is led there first, without counting as started."""
    second.errors[standby.ONLINE_CPU] = 1
    with pytest.raises(AgentError):
        a_retirement(second).give_cpus()
    assert second.calls[-3:] == ["stop 4", "start 4 own", "on 4"]
    assert (second.online, second.started) == ({0, 1, 2}, set())


def test_a_bootstrap_processor_that_is_not_in_the_loop_is_not_sent(second: Machine) -> None:
    """Nobody would take the mail."""
    loop = Loop.own(second, second.root)  # type: ignore[arg-type]
    assert loop is not None
    with pytest.raises(KupgradeError, match="cannot be moved"):
        loop.send(0, a_retirement(second).loop)


def test_buses_pass_or_come_back(first: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the agent: driven here again. No answer at all: the new kernel may drive them, hands off."""
    done: list[str] = []
    monkeypatch.setattr(buses, "table", lambda *_: b"SSDT")
    for name in ("keep_awake", "quiesce", "resume"):
        monkeypatch.setattr(buses, name, lambda *_, name=name: done.append(name))
    movables: Any = ["bus"]
    found = a_retirement(first)
    found.give_buses(movables, 1)
    assert done == ["keep_awake", "quiesce"]
    found.give_buses((), 1)
    for error, end_of_it in ((1, "resume"), (0, "quiesce")):
        first.errors[standby.LOAD_SSDT] = error
        with pytest.raises(KupgradeError):
            found.give_buses(movables, 1)
        assert done[-1] == end_of_it


def test_the_whole_order(first: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs, promise, buses, the end; and each part is told with its seconds."""
    order: list[str] = []
    told: list[str] = []
    monkeypatch.setattr(buses, "find", lambda *_: ("bus",))
    for name in ("give_cpus", "promise", "give_buses", "leave"):
        monkeypatch.setattr(Retirement, name, lambda *_, name=name: order.append(name))
    device: Any = first
    call: Callable[..., object] = retirement.retire
    call(device, a_retirement(first).instance, device, (), 1, first.root, lambda part, _: told.append(part))
    assert order == ["give_cpus", "promise", "give_buses", "leave"]
    assert told == ["all CPUs but the last"]


def test_a_kernel_of_the_firmware_has_no_loop(first: Machine) -> None:
    """It starts CPUs by INIT."""
    assert own_park.own_loop(first.root) is None


def test_a_loop_is_where_the_box_begins(second: Machine) -> None:
    """Mailbox, code and slots at the fixed places of every box."""
    found = Loop.own(second, second.root)  # type: ignore[arg-type]
    assert found is not None
    assert found.entry == Entry(OWN + box.PARK, OWN + TABLES)
    assert found.area == MemoryRange(OWN, box.REGISTERS)

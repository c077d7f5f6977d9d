"""The old kernel's end: every CPU goes where it should, all else is promised, and a failure leaves all as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kupgrade.core import box
from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel import acpi, modules
from kupgrade.kernel.kspawn import Entry
from kupgrade.machine import buses, own_park, retirement
from kupgrade.machine.own_park import Loop
from kupgrade.machine.retirement import Retirement
from kupgrade.machine.spawner import Spawner
from kupgrade.model import standby
from kupgrade.model.ids import UpgradeId
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import CpusBefore, GivenCpu, Instance
from tests.fakes import facts as fake
from tests.fakes.leaving import BLOCK, MIB, NEW, OWN, TABLES, Machine, a_machine


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
    found.settle_cpus()
    found.promise()
    with pytest.raises(KupgradeError, match="did not end"):
        found.leave()


def test_a_kernel_ends_with_all_its_cpus_at_once(first: Machine) -> None:
    """What it did not run on is parked before; nothing is taken offline."""
    end(a_retirement(first))
    assert first.calls == ["start 8", "inherit", "leave"]
    assert first.legacy.cpus == (0, 2, 4)
    assert a_retirement(first).loop.waiting() == (0, 2, 4, 8)


def test_the_promise_is_all_memory_but_the_new_box(first: Machine) -> None:
    """From 1 MiB on."""
    memory = a_retirement(first).legacy().memory
    assert memory == (MemoryRange.between(MIB, NEW), MemoryRange.between(NEW + 4 * BLOCK, 32 * BLOCK))


def test_a_kernel_in_a_box_leaves_the_whole_box(second: Machine) -> None:
    """Control area and window, which are no RAM to it, end with it."""
    iomem = f"00100000-{OWN - 1:08x} : System RAM\n{OWN + 2 * MIB:08x}-{OWN + 3 * BLOCK - 1:08x} : System RAM\n"
    (second.root / "proc/iomem").write_text(iomem)
    assert a_retirement(second).legacy().memory[-1] == MemoryRange.between(NEW + 4 * BLOCK, OWN + 4 * BLOCK)


@pytest.mark.parametrize("fault", ["deaf 8", "start 8"])
def test_a_cpu_that_does_not_come_is_an_error(first: Machine, fault: str) -> None:
    """It could still run in memory that is given away; trying again goes on."""
    first.errors[fault] = errno.ETIMEDOUT
    with pytest.raises(KupgradeError):
        a_retirement(first).settle_cpus()
    first.errors.clear()
    first.started.clear()
    assert a_retirement(first).settle_cpus() == (8,)
    assert a_retirement(first).settle_cpus() == (8,)


def test_a_cpu_that_runs_in_the_new_kernel_is_left_alone(first: Machine) -> None:
    """It was started before, and left the loop."""
    first.started.add(8)
    assert a_retirement(first).settle_cpus() == ()


def test_a_cpu_that_is_not_there_is_passed_over(first: Machine) -> None:
    """The firmware may list more than there are."""
    first.errors["start 8"] = errno.ENODEV
    assert a_retirement(first).settle_cpus() == ()


def test_a_cpu_that_this_kernel_cannot_address_is_passed_over(first: Machine) -> None:
    """The firmware lists more than an xAPIC reaches. Such a one never ran here, the new kernel may know it or not."""
    first.errors |= {"start 8": errno.ERANGE, "stop 300": errno.ERANGE}
    (first.root / "sys/firmware/acpi/tables/APIC").write_bytes(acpi.madt((0, 2, 4, 8, 6, 300), 0, 0))
    assert a_retirement(first).settle_cpus() == ()


def test_a_cpu_that_the_new_kernel_does_not_know_is_stopped(first: Machine) -> None:
    """It must not go on in memory that will be overwritten."""
    tables = first.root / "sys/firmware/acpi/tables/APIC"
    tables.write_bytes(acpi.madt((0, 2, 4, 8, 6, 10), 0, 0))
    end(a_retirement(first))
    assert "stop 10" in first.calls


def test_a_bootstrap_processor_that_rests_comes_online_first(second: Machine) -> None:
    """It may get no INIT, so it can only go together with all others."""
    second.turn(1, False)
    second.calls.clear()
    end(a_retirement(second))
    assert second.calls == ["on 0", "start 8", "inherit", "leave"]
    assert second.legacy.cpus == (2, 0, 4)


def test_a_refused_end_changes_nothing(second: Machine) -> None:
    """This kernel runs on all its CPUs."""
    second.errors["leave"] = errno.EINVAL
    with pytest.raises(KernelError):
        a_retirement(second).leave()
    assert second.online == {0, 1, 2}


def test_a_loaded_kvm_is_unloaded_for_the_end(first: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is loaded no CPU can leave (EBUSY), whether a virtual machine runs or not."""
    first.errors["leave"] = errno.EBUSY

    def unload(name: str) -> None:
        first.calls.append(f"unload {name}")
        del first.errors["leave"]

    monkeypatch.setattr(modules, "unload", unload)
    with pytest.raises(KupgradeError, match="did not end"):
        a_retirement(first).leave()
    assert first.calls == ["leave", "unload kvm_intel", "leave"]


def test_a_kvm_in_use_is_told(first: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With virtual machines of its own this kernel stays."""
    first.errors["leave"] = errno.EBUSY

    def unload(name: str) -> None:
        raise KernelError("delete_module", name, errno.EAGAIN, "End what uses it")

    monkeypatch.setattr(modules, "unload", unload)
    with pytest.raises(KernelError, match="kvm_intel"):
        a_retirement(first).leave()
    assert first.calls == ["leave"]


def test_a_cpu_comes_back_to_a_spawned_kernel_through_its_loop(second: Machine) -> None:
    """After INIT it listens to no mailbox: it is led there first, without counting as started."""
    device: Any = second
    spawner = Spawner(device, second.root, second.pause, lambda: second.now)
    given = CpusBefore((GivenCpu(2, 4, True), GivenCpu(3, 8, False)))
    second.turn(2, False)
    second.calls.clear()
    spawner.give_cpus(given)
    assert second.calls == ["stop 4", "start 4 own", "on 4", "stop 8"]
    assert (second.online, second.started) == ({0, 1, 2}, set())


def test_buses_pass_or_come_back(first: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the agent: driven here again. No answer at all: the new kernel may drive them, hands off.

    What a worker that comes after a kill has to know is marked before they pass.
    """
    done: list[str] = []
    monkeypatch.setattr(buses, "table", lambda *_: b"SSDT")
    for name in ("keep_awake", "quiesce", "resume"):
        monkeypatch.setattr(buses, name, lambda *_, name=name: done.append(name))
    movables: Any = ["bus"]
    found = a_retirement(first)
    found.passing = lambda passing: done.append(f"passing {passing}")
    found.give_buses(movables, 1)
    assert done == ["keep_awake", "quiesce", "passing True"]
    found.give_buses((), 1)
    for error, end_of_it in ((1, "passing False"), (0, "passing True")):
        first.errors[standby.LOAD_SSDT] = error
        with pytest.raises(KupgradeError):
            found.give_buses(movables, 1)
        assert done[-1] == end_of_it


def test_a_device_whose_driver_cannot_let_it_go_stays_behind(first: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is wanted, not needed: this kernel ends all the same, and the others pass. Any other failure is an error."""
    movables: Any = [fake.root_port(f"0000:00:{number:02x}.0").movable for number in (4, 5, 6)]
    passed: list[Any] = []
    said: list[str] = []
    number = errno.EOPNOTSUPP

    def quiesce(_device: object, wanted: Any, _root: object) -> None:
        if movables[1] in wanted:
            raise KernelError("KSPAWN_QUIESCE", str(movables[1].functions[0].address), number)

    monkeypatch.setattr(buses, "quiesce", quiesce)
    monkeypatch.setattr(buses, "keep_awake", lambda *_: None)
    monkeypatch.setattr(buses, "table", lambda wanted, *_: passed.append(list(wanted)) or b"SSDT")
    found = a_retirement(first)
    found.told = lambda part, _seconds: said.append(part)
    found.give_buses(movables, 1)
    assert passed[-1] == [movables[0], movables[2]]
    assert "0000:00:05.0" in said[0] and said[1] == "2 buses"
    found.give_buses([movables[1]], 1)
    assert [call for call in first.calls if call == standby.LOAD_SSDT] == [standby.LOAD_SSDT]
    number = errno.EIO
    with pytest.raises(KernelError):
        found.give_buses(movables, 1)


def test_the_whole_order(first: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs at rest, promise, buses, the end; and each part is told with its seconds."""
    order: list[str] = []
    told: list[str] = []
    monkeypatch.setattr(buses, "find", lambda *_: ("bus",))
    for name in ("settle_cpus", "promise", "give_buses", "leave"):
        monkeypatch.setattr(Retirement, name, lambda *_, name=name: order.append(name))
    device: Any = first
    call: Callable[..., object] = retirement.retire
    call(device, a_retirement(first).instance, device, (), 1, first.root, lambda part, _: told.append(part))
    assert order == ["settle_cpus", "promise", "give_buses", "leave"]
    assert told == ["word of what is left"]


def test_a_kernel_of_the_firmware_has_no_loop(first: Machine) -> None:
    """It starts CPUs by INIT."""
    assert own_park.own_loop(first.root) is None


def test_a_loop_is_where_the_box_begins(second: Machine) -> None:
    """Mailbox, code and slots at the fixed places of every box."""
    found = Loop.own(second, second.root)  # type: ignore[arg-type]
    assert found is not None
    assert found.entry == Entry(OWN + box.PARK, OWN + TABLES)
    assert found.area == MemoryRange(OWN, box.REGISTERS)

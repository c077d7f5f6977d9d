"""Starting a kernel beside this one, against a fake device: what is written, started, stopped, given back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import BadInputError, KernelError, KupgradeError, RefusedError
from kupgrade.kernel import acpi
from kupgrade.kernel.kspawn import Entry
from kupgrade.machine import spawn_box
from kupgrade.machine.spawner import Spawner
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import CpusBefore, MemoryBefore
from tests.unit.spawning import BLOCK, Device, Host, blueprint, device, host, put, spawner, through_json

__all__ = ["device", "host", "put", "spawner"]  # fixtures


def test_cpus_are_taken_and_come_back_as_they_were(spawner: Spawner, host: Host, device: Device) -> None:
    """From what another process reads in the journal; done twice is done once."""
    before = through_json(spawner.cpus_before((3, 2)))
    assert (before.apic_ids, before.others) == ((6, 4), (0, 2))
    for _ in range(2):
        spawner.take_cpus(before)
    assert str(spawner.cpus_taken(before)) == "2-3"
    for _ in range(2):
        spawner.give_cpus(before)
    assert not spawner.cpus_taken(before)
    assert [call for call in device.calls if call[0] == "stop"] == [("stop", 6), ("stop", 4)]


def test_a_cpu_that_was_offline_stays_so(spawner: Spawner) -> None:
    """What an administrator took offline is not brought online; whatever ran there is stopped."""
    before = spawner.cpus_before((3, 2))
    first = before.given[0]
    was_offline = CpusBefore((type(first)(first.number, first.apic_id, False), before.given[1]), before.others)
    spawner.take_cpus(was_offline)
    spawner.give_cpus(was_offline)
    assert str(spawner.cpus_taken(was_offline)) == "3"


def test_one_cpu_that_does_not_come_back_keeps_no_other_away(spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can come back does; the failure is told then."""
    import kupgrade.kernel.cpu as module

    real = module.bring_online

    def stubborn(number: int, root: Path) -> None:
        if number == 3:
            raise KernelError("write", "cpu3/online", errno.EIO)
        real(number, root)

    before = spawner.cpus_before((3, 2))
    spawner.take_cpus(before)
    monkeypatch.setattr(module, "bring_online", stubborn)
    with pytest.raises(KernelError, match="cpu3"):
        spawner.give_cpus(before)
    assert str(spawner.cpus_taken(before)) == "3"


def test_a_cpu_that_cannot_be_stopped_lets_no_other_run_on(spawner: Spawner, device: Device, tmp_path: Path) -> None:
    """A kernel that is half stopped still writes."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    device.refuse = {6: errno.EACCES}
    with pytest.raises(KernelError):
        spawner.fence(laid.instance)
    assert list(device.running) == [6]


def test_one_block_that_does_not_come_back_keeps_no_other_away(
    spawner: Spawner, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can come back does; the failure is told then."""
    import kupgrade.kernel.memory_blocks as module

    def stubborn(number: int, _zone: str, _root: Path) -> None:
        if number == 21:
            raise KernelError("write", "memory21/state", errno.EBUSY)
        host.put(f"{module.BLOCKS}/memory{number}/state", "online\n")

    before = spawner.memory_before()
    spawner.take_memory(before, 3 * BLOCK)
    monkeypatch.setattr(module, "bring_online", stubborn)
    with pytest.raises(KernelError, match="memory21"):
        spawner.give_memory(before)
    assert spawner.memory_taken(before) == (21,)


def test_cpus_that_cannot_be_addressed_are_none_of_the_new_kernels(spawner: Spawner, host: Host) -> None:
    """The firmware lists all; those beyond what this machine's APICs reach get no place in the box."""
    (host.root / "sys/firmware/acpi/tables/APIC").write_bytes(acpi.madt((0, 2, 4, 6, 8, *range(300, 900)), 0, 0))
    assert spawner.cpus_before((3, 2)).others == (0, 2, 8)


def test_an_offline_cpu_without_apic_id_is_refused(spawner: Spawner, put: Callable[[str, str], Path]) -> None:
    """Nobody can be sent an interrupt without one."""
    put("proc/cpuinfo", "processor\t: 0\napicid\t\t: 0\nflags\t: lm\n")
    put("sys/devices/system/cpu/online", "0-2")
    with pytest.raises(BadInputError, match="CPU 3"):
        spawner.cpus_before((3,))


def test_memory_is_taken_in_one_piece_and_comes_back(
    spawner: Spawner, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Movable blocks first; what was online before comes back into its zone, whoever gives it back, however often."""
    before: MemoryBefore = through_json(spawner.memory_before())
    assert spawner.take_memory(before, 3 * BLOCK) == MemoryRange(21 * BLOCK, 3 * BLOCK)
    assert spawner.memory_taken(before) == (21, 22, 23)
    assert spawner.take_memory(before, 3 * BLOCK) == MemoryRange(21 * BLOCK, 3 * BLOCK)
    asked: list[tuple[int, str]] = []
    monkeypatch.setattr(
        "kupgrade.kernel.memory_blocks.bring_online", lambda number, zone, _root: asked.append((number, zone))
    )
    spawner.give_memory(before)
    assert [each for each in asked if each[0] > 20] == [(21, "Movable"), (22, "Movable"), (23, "Movable")]
    assert (0, "Normal") in asked


def test_blocks_that_refuse_cost_nothing(spawner: Spawner, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no run can be had, everything is online again, and the error says what would help."""
    import kupgrade.kernel.memory_blocks as module

    real = module.take_offline

    def stubborn(number: int, root: Path) -> None:
        if number % 2:
            raise KernelError("write", "state", errno.EBUSY)
        real(number, root)

    monkeypatch.setattr(module, "take_offline", stubborn)
    monkeypatch.setattr(
        module, "bring_online", lambda n, _zone, root: host.put(f"{module.BLOCKS}/memory{n}/state", "online\n")
    )
    before = spawner.memory_before()
    with pytest.raises(RefusedError, match="movablecore"):
        spawner.take_memory(before, 3 * BLOCK)
    assert host.online() == list(range(24))


def test_a_kernel_is_started_where_everything_lies(spawner: Spawner, device: Device, tmp_path: Path) -> None:
    """First CPU at the kernel's entry point with its zero page, the others in the park loop; the guard is armed."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    instance = through_json(laid.instance)
    assert instance == laid.instance
    assert (instance.apic_ids, instance.later, instance.bsp) == ((6, 4), (0, 2), 0)
    assert device.running[6] == Entry(laid.box.entry, instance.page_tables, laid.box.zero_page)
    with spawner.watch(instance) as watch:
        assert watch.parked() == (4,)
        assert watch.registers() == (0, 0)
    assert device.guarded == (6, 4)
    assert os.pread(device.file, 6000, laid.box.initrd.start) == b"initrd" * 1000
    line = os.pread(device.file, 2048, laid.box.cmdline.start).split(b"\0")[0].decode()
    assert line == str(spawn_box.command_line(laid))


def test_starting_again_stops_what_ran_there(spawner: Spawner, device: Device, tmp_path: Path) -> None:
    """A process that was killed in the middle leaves nothing that another one trips over."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    spawner.start(laid)
    assert sorted(device.running) == [4, 6]


@pytest.mark.parametrize("broken", ["refused", "deaf"])
def test_a_cpu_that_does_not_come_stops_the_others(
    spawner: Spawner, device: Device, tmp_path: Path, broken: str
) -> None:
    """The error says which; nothing runs in the box afterwards."""
    laid = blueprint(spawner, tmp_path)
    spawner.fence(laid.instance)
    if broken == "deaf":
        device.deaf.add(4)
        with pytest.raises(KupgradeError, match="APIC ID 4"):
            spawner.start(laid)
    else:
        device.start = lambda *_: (_ for _ in ()).throw(KernelError("KSPAWN_START", "6", errno.ETIMEDOUT))  # type: ignore[method-assign]
        with pytest.raises(KernelError):
            spawner.start(laid)
    assert not device.running
    assert not device.guarded


def test_a_fenced_kernel_is_forgotten(spawner: Spawner, device: Device, tmp_path: Path) -> None:
    """All CPUs get INIT, one that is online here does not count; its box holds zeros, window and all."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    spawner.fence(laid.instance, further=(2,))
    assert not device.running
    device.refuse[4] = errno.EBUSY
    spawner.fence(laid.instance)
    spawner.wipe(laid.instance)
    box = laid.instance.box
    assert os.pread(device.file, box.size, box.start) == bytes(box.size)


@pytest.mark.parametrize(
    ("changes", "said"), [({"window": 4096}, "window"), ({"memory": MemoryRange(BLOCK, BLOCK)}, "box")]
)
def test_what_does_not_fit_is_refused(spawner: Spawner, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """With the sizes in the message, before anything is taken."""
    with pytest.raises(RefusedError, match=said):
        blueprint(spawner, tmp_path, **changes)


def test_a_machine_without_memory_mapped_configuration_is_refused(spawner: Spawner, tmp_path: Path) -> None:
    """The new kernel would not register its window."""
    (spawner.root / "sys/firmware/acpi/tables/MCFG").unlink()
    with pytest.raises(RefusedError, match="mmconfig"):
        blueprint(spawner, tmp_path)


def test_a_child_of_a_spawned_kernel_gets_other_low_memory(
    spawner: Spawner, tmp_path: Path, put: Callable[[str, str], Path]
) -> None:
    """The stretch of the parent is in use, and the firmware's map is not known to it."""
    first = blueprint(spawner, tmp_path).instance.low
    put("proc/cmdline", f"quiet kupgrade.low={first.start:#x}:{first.size:#x}\n")
    assert not blueprint(spawner, tmp_path).instance.low.overlaps(first)


def test_low_memory_is_not_where_this_kernels_own_real_mode_code_is(
    spawner: Spawner, tmp_path: Path, put: Callable[[str, str], Path]
) -> None:
    """It lies at the top of low RAM, wherever that ends."""
    put("sys/firmware/memmap/0/end", "0x57fff\n")
    put("sys/firmware/memmap/1/start", "0x59000\n")
    put("sys/firmware/memmap/1/end", "0x91fff\n")
    put("sys/firmware/memmap/1/type", "System RAM\n")
    assert not blueprint(spawner, tmp_path).instance.low.overlaps(MemoryRange.between(0x8A000, 0x92000))


def test_no_generation_gets_low_memory_that_the_firmware_keeps(
    spawner: Spawner, tmp_path: Path, put: Callable[[str, str], Path]
) -> None:
    """A page at 0x58000 is kept on some machines; children of spawned kernels do not see that in a map of theirs."""
    kept = MemoryRange(0x58000, 0x1000)
    put("sys/firmware/memmap/0/end", f"{kept.start - 1:#x}\n")
    put("sys/firmware/memmap/1/start", f"{kept.end:#x}\n")
    put("sys/firmware/memmap/1/end", "0x9efff\n")
    put("sys/firmware/memmap/1/type", "System RAM\n")
    before = None
    for _ in range(4):
        laid = blueprint(spawner, tmp_path)
        assert not laid.instance.low.overlaps(kept)
        assert before is None or not laid.instance.low.overlaps(before)
        before = laid.instance.low
        put("proc/cmdline", f"{spawn_box.command_line(laid)}\n")


def test_the_bootstrap_processor_is_never_given(spawner: Spawner, tmp_path: Path, device: Device) -> None:
    """INIT would reset the machine; nor is anything given while it is not known."""
    with pytest.raises(BadInputError, match="bootstrap"):
        spawner.lay_out(blueprint(spawner, tmp_path).order, spawner.cpus_before((0, 1)))

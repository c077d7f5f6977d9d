"""The new kernel's side of the old one's end: what waits comes online, what is free is added, all of it is told."""

from __future__ import annotations

import errno
import json
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import BadInputError, KernelError, KupgradeError
from kupgrade.kernel import acpi, cpu_numbers, memory_blocks, park_code
from kupgrade.model import standby
from kupgrade.model.codec import decode, encode
from kupgrade.model.machine import MemoryRange
from kupgrade.model.standby import Inherited, Legacy, Stage
from kupgrade.standby import heir
from kupgrade.standby.heir import Heir
from kupgrade.standby.verbs import VERBS, Here
from tests.unit.test_retirement import BLOCK, NEW, Machine

PARK = NEW + 0x1000
IDS = (6, 0, 2, 4)  # as this kernel numbers them
LEGACY = Legacy(PARK, (0,), (MemoryRange(BLOCK // 2, 3 * BLOCK), MemoryRange(40 * BLOCK, 4 * BLOCK)))


class NewKernel(Machine):
    """Memory blocks appear a moment after their table; `stubborn` ones stay offline until they are told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0, 6)
        self.loop(NEW, IDS)
        self.pieces: list[MemoryRange] = []
        self.absent: set[int] = set()
        self.online = {0}
        self.write()
        self.put("proc/meminfo", f"MemTotal: {300 << 10} kB\nMemFree: {32 << 10} kB\nHugePages_Total: 0\n")
        self.put("sys/devices/system/memory/block_size_bytes", f"{BLOCK:x}\n")
        (self.root / "sys/firmware/acpi/tables").mkdir(parents=True)
        (self.root / "sys/firmware/acpi/tables/APIC").write_bytes(acpi.madt(IDS, NEW, PARK))
        for name in ("present", "possible"):
            self.put(f"sys/devices/system/cpu/{name}", "0-3\n")

    def put(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def apic(self, number: int) -> int:
        return IDS[number]

    def turn(self, number: int, on: bool) -> None:
        self.calls.append(f"on {self.apic(number)}")
        assert self.flag(PARK, self.apic(number), 0), "this kernel would wait for ever"
        self.online.add(number)
        self.write()

    def load_ssdt(self, table: bytes) -> None:
        at = table.index(b"\x8a\x2b\x00")  # QWordMemory
        start, last = (int.from_bytes(table[at + n : at + n + 8], "little") for n in (14, 22))
        piece = MemoryRange.between(start, last + 1)
        self._fail(f"table {len(self.pieces)}")
        self.pieces.append(piece)
        for number in memory_blocks.numbers(piece, BLOCK):
            if number not in self.absent:
                self.put(f"sys/devices/system/memory/memory{number}/state", "offline\n")
        self.put("proc/meminfo", f"MemTotal: {900 << 10} kB\nMemFree: {600 << 10} kB\n")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewKernel]:
    found = NewKernel(tmp_path)
    monkeypatch.setattr("kupgrade.kernel.cpu.bring_online", lambda number, _root: found.turn(number, True))
    monkeypatch.setattr(
        memory_blocks,
        "bring_online",
        lambda number, root: found.put(f"sys/devices/system/memory/memory{number}/state", "online\n"),
    )
    yield found
    for each in threading.enumerate():  # before what they look at is closed
        if each.name == "heir":
            each.join(10.0)
    os.close(found.file)


def an_heir(kernel: NewKernel) -> Heir:
    device: Any = kernel
    return Heir(device, kernel.root, kernel.pause, lambda: kernel.now)


def told(kernel: NewKernel) -> Inherited:
    return decode(Inherited, json.loads((kernel.root / standby.INHERITED_FILE).read_text()))


def test_cpus_are_numbered_as_their_kernel_lists_them(kernel: NewKernel) -> None:
    """The one that booted it first, whatever its place; the placeholder counts for nothing."""
    assert cpu_numbers.by_apic_id(kernel.root) == {6: 0, 0: 1, 2: 2, 4: 3}
    (kernel.root / "sys/firmware/acpi/tables/APIC").write_bytes(acpi.madt((0, 6, 2), NEW, PARK))
    assert cpu_numbers.by_apic_id(kernel.root) == {6: 0, 0: 1, 2: 2}


def test_numbers_that_the_kernel_contradicts_are_not_used(kernel: NewKernel) -> None:
    """A CPU that is not in the loop would be waited for, for ever."""
    kernel.put("proc/cpuinfo", "processor\t: 0\napicid\t\t: 6\n\nprocessor\t: 1\napicid\t\t: 4\n")
    with pytest.raises(KupgradeError, match="not known"):
        cpu_numbers.by_apic_id(kernel.root)


def test_a_cpu_comes_online_out_of_the_loop_only(kernel: NewKernel) -> None:
    """By its APIC ID; done twice is done once."""
    device: Any = kernel
    with pytest.raises(KupgradeError, match="not in the park loop"):
        heir.bring_online(device, PARK, 4, kernel.root)
    kernel.flag(PARK, 4, 1)
    for _ in range(2):
        assert heir.bring_online(device, PARK, 4, kernel.root) == 3
    assert kernel.calls == ["on 4"]
    with pytest.raises(KupgradeError, match="knows no CPU"):
        heir.bring_online(device, PARK, 9, kernel.root)
    with pytest.raises(BadInputError, match="no park loop"):
        heir.waiting(device, NEW + 0x100000)


def test_all_is_taken_and_told(kernel: NewKernel) -> None:
    """Whole blocks, the first of them no more than what is free can describe."""
    kernel.flag(PARK, 0, 1)
    an_heir(kernel).take(LEGACY)
    assert kernel.pieces == [MemoryRange(BLOCK, 2 * BLOCK), MemoryRange(40 * BLOCK, 4 * BLOCK)]
    found = told(kernel)
    assert (found.stage, found.missing) == (Stage.DONE, ())
    assert (found.cpus_before, found.cpus) == ("0", "0-1")
    assert (found.memory_before, found.memory) == (300 << 20, 900 << 20)
    states = [memory_blocks.block(number, kernel.root).state.value for number in (1, 2, 40, 43)]
    assert states == ["online"] * 4


def test_memory_comes_in_pieces_when_little_is_free(kernel: NewKernel) -> None:
    """The kernel describes what it is given in what it has."""
    kernel.put("proc/meminfo", f"MemTotal: {300 << 10} kB\nMemFree: {10 << 10} kB\n")
    kernel.flag(PARK, 0, 1)
    an_heir(kernel).take(LEGACY)
    assert [each.size // BLOCK for each in kernel.pieces] == [1, 1, 4]


def test_what_does_not_come_is_told(kernel: NewKernel) -> None:
    """A CPU not known here, a table that is refused, a block that never appears: the rest is taken all the same."""
    kernel.errors["table 1"] = 5
    kernel.absent.add(1)
    kernel.flag(PARK, 0, 1)
    (kernel.root / "sys/firmware/acpi/tables/APIC").write_bytes(acpi.madt((6, 2, 4), NEW, PARK))
    an_heir(kernel).take(LEGACY)
    found = told(kernel)
    assert found.stage is Stage.DONE
    assert len(found.missing) == 3
    assert "APIC ID 0" in found.missing[0]
    assert "block 1" in found.missing[1]


def test_no_memory_is_taken_that_a_cpu_may_still_run_in(kernel: NewKernel) -> None:
    """One that stays away is in the old kernel's code, which nobody may write over; the others come."""
    kernel.flag(PARK, 2, 1)
    an_heir(kernel).take(replace(LEGACY, cpus=(0, 2)))
    found = told(kernel)
    assert (found.stage, found.cpus, kernel.pieces) == (Stage.DONE, "0,2", [])
    assert len(found.missing) == 2
    assert "APIC ID 0" in found.missing[0] and "memory" in found.missing[1]


def test_a_cpu_that_comes_late_is_waited_for(kernel: NewKernel) -> None:
    """A hypervisor may keep one waiting for long."""

    def pause(seconds: float) -> None:
        kernel.now += seconds
        if kernel.now > 20.0:
            kernel.flag(PARK, 0, 1)

    found = an_heir(kernel)
    found.pause = pause
    kernel.flag(PARK, 2, 1)
    found.take(replace(LEGACY, cpus=(0, 2)))
    assert told(kernel).missing == ()


def test_where_it_stands_is_told_until_it_is_over(kernel: NewKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that never comes online is named meanwhile; what nobody foresaw ends it all the same, and is told."""
    seen = []

    def stuck(number: int, root: Path) -> None:
        seen.append(told(kernel))
        raise ValueError("of no kind that was expected")

    monkeypatch.setattr(memory_blocks, "bring_online", stuck)
    kernel.flag(PARK, 0, 1)
    an_heir(kernel).take(LEGACY)
    assert (seen[0].stage, seen[0].doing) == (Stage.TAKING, "memory block 1 comes online")
    found = told(kernel)
    assert (found.stage, found.doing) == (Stage.DONE, "")
    assert "no kind that was expected" in found.missing[-1]


def test_nothing_is_taken_while_the_old_kernel_lives(kernel: NewKernel) -> None:
    """And another word of it replaces the first; the end of the talk ends the wait."""
    device: Any = kernel
    here = Here(device, kernel.root)
    here.heir.pause = lambda _: None
    assert VERBS["inherited"](here, {})["stage"] == "none"
    for _ in range(2):
        VERBS["inherit"](here, {"legacy": encode(LEGACY)})
        assert VERBS["inherited"](here, {})["stage"] == "waiting"
    assert not kernel.pieces
    VERBS["stop"](here, {})
    assert VERBS["inherited"](here, {})["stage"] == "none"
    VERBS["stop"](here, {})
    with pytest.raises(BadInputError):
        VERBS["inherit"](here, {"legacy": 7})


def test_the_last_cpu_in_the_loop_is_the_old_kernels_end(kernel: NewKernel, capsys: pytest.CaptureFixture[str]) -> None:
    """From then on all is this kernel's, and nobody can call it off."""
    device: Any = kernel
    found = Heir(device, kernel.root, lambda _: None)
    found.expect(LEGACY)
    kernel.flag(PARK, LEGACY.cpus[-1], 1)
    assert found._thread is not None
    found._thread.join(10.0)
    assert found.found.stage is Stage.DONE
    assert "inherited" in capsys.readouterr().err
    with pytest.raises(KupgradeError, match="gone"):
        found.expect(LEGACY)


def test_a_loop_that_cannot_be_seen_is_no_end(kernel: NewKernel) -> None:
    """It is looked at again, and meanwhile the answer says what is the matter."""
    seen: list[str] = []
    right, fails = kernel.map, [False]

    def mapped(*given: int, **named: bool) -> mmap.mmap:
        if fails[0]:
            raise KernelError("mmap", "", errno.EAGAIN)
        return right(*given, **named)

    def paused(_: float) -> None:
        seen.append(found.found.doing)
        if len(seen) == 20:
            kernel.flag(PARK, LEGACY.cpus[-1], 1)
        fails[0] = len(seen) < 20

    kernel.map = mapped  # type: ignore[method-assign, assignment]
    device: Any = kernel
    found = Heir(device, kernel.root, paused)
    found.expect(LEGACY)
    assert found._thread is not None
    found._thread.join(10.0)
    assert any("mmap" in each for each in seen)
    assert (told(kernel).stage, told(kernel).doing) == (Stage.DONE, "")


def test_a_page_without_a_loop_is_refused() -> None:
    """Whoever names a wrong address is told at once."""
    with pytest.raises(BadInputError, match="park loop"):
        park_code.slots_of(bytes(park_code.PAGE))


def test_a_refusal_is_no_end(kernel: NewKernel) -> None:
    """An error of the mapping is the asker's to see."""

    def fails(*_: object, **__: object) -> None:
        raise KernelError("mmap", "", 1)

    kernel.map = fails  # type: ignore[assignment, method-assign]
    with pytest.raises(KernelError):
        an_heir(kernel).expect(LEGACY)


def test_of_a_block_that_is_being_added_only_its_state_is_read(
    kernel: NewKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other attributes are there before the kernel can answer them."""
    monkeypatch.delattr(memory_blocks, "block")
    kernel.flag(PARK, 0, 1)
    an_heir(kernel).take(LEGACY)
    assert told(kernel).missing == ()


@pytest.mark.parametrize(
    ("left", "stage", "missing"),
    [
        (None, Stage.WAITING, ()),
        (Inherited(Stage.TAKING, doing="block 1"), Stage.DONE, ("the agent was killed when block 1",)),
        (Inherited(Stage.TAKING, missing=("CPU 3",)), Stage.DONE, ("CPU 3", "the agent was killed when it began")),
        (Inherited(Stage.DONE, memory=7), Stage.DONE, ()),
    ],
)
def test_another_agent_expects_what_a_killed_one_expected(
    left: Inherited | None, stage: Stage, missing: tuple[str, ...], kernel: NewKernel
) -> None:
    """Until the old kernel is gone; what the killed one was in the middle of is told, and not tried again."""
    first, second = an_heir(kernel), an_heir(kernel)
    second.resume()
    assert second.found.stage is Stage.NONE
    first.expect(LEGACY)
    first._given_up.set()
    assert first._thread is not None
    first._thread.join(10.0)  # a killed one takes nothing any more
    if left is not None:
        (kernel.root / "run/kupgrade/inherited.json").write_text(json.dumps(encode(left)))
    second.resume()
    assert (second.found.stage, second.found.missing) == (stage, missing)
    if left is not None:
        assert told(kernel) == second.found
        return
    kernel.flag(PARK, LEGACY.cpus[-1], 1)
    assert second._thread is not None
    second._thread.join(10.0)
    assert told(kernel).stage is Stage.DONE


def test_what_is_expected_no_more_is_not_expected_by_another_agent(kernel: NewKernel) -> None:
    """The talk ended: there is nothing to come into."""
    first, second = an_heir(kernel), an_heir(kernel)
    first.expect(LEGACY)
    first.give_up()
    second.resume()
    assert second.found.stage is Stage.NONE

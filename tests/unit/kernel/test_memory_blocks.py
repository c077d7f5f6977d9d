"""Memory blocks in sysfs, and what the machine's memory is used for."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel import memory_blocks
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import BlockState, MemoryBlock

Put = Callable[[str, str], Path]
MEMORY = "sys/devices/system/memory"

IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-7fffffff : System RAM
  01000000-01ffffff : Kernel code
  02000000-02000fff : Reserved
80000000-8fffffff : Persistent Memory (legacy)
  80000000-8fffffff : namespace0.0
b0000000-bfffffff : PCI ECAM 0000 [bus 00-ff]
100000000-13fffffff : System RAM
140000000-17fffffff : Reserved
"""


def put_block(put: Put, number: int, state: str = "online", zones: str = "Normal", **files: str) -> None:
    put(f"{MEMORY}/memory{number}/state", state + "\n")
    put(f"{MEMORY}/memory{number}/valid_zones", zones + "\n")
    for name, text in files.items():
        put(f"{MEMORY}/memory{number}/{name}", text)


def test_blocks_are_listed_by_number(put: Put, tmp_path: Path) -> None:
    """State, zone, node; what the kernel does not tell is unknown."""
    put(f"{MEMORY}/block_size_bytes", "8000000\n")
    put_block(put, 10, zones="Movable Normal", removable="1\n")
    put_block(put, 2, "offline", "Normal Movable", removable="0\n")
    put_block(put, 3, "strange", "none")
    (tmp_path / MEMORY / "memory10/node1").mkdir()
    found = memory_blocks.blocks(tmp_path)
    assert memory_blocks.block_size(tmp_path) == 128 << 20
    assert found == (
        MemoryBlock(2, BlockState.OFFLINE, False, ("Normal", "Movable")),
        MemoryBlock(3, BlockState.UNKNOWN),
        MemoryBlock(10, BlockState.ONLINE, True, ("Movable", "Normal"), 1),
    )
    assert [each.movable for each in found] == [False, False, True]


def test_a_block_that_holds_the_kernel_or_its_crash_memory_is_not_removable(put: Put, tmp_path: Path) -> None:
    """Whatever the kernel says of it: it says so of every block."""
    put(f"{MEMORY}/block_size_bytes", "8000000\n")
    for number in (1, 2, 3, 4, 5):
        put_block(put, number, zones="Movable", removable="1\n")
    put(
        "proc/iomem",
        "00000000-00000fff : Reserved\n00001000-27ffffff : System RAM\n  10000000-10ffffff : Kernel code\n"
        "  1fffffff-20000000 : Crash kernel\n28000000-2fffffff : PCI Bus 0000:00\n  28000000-28000fff : 0000:00:01.0\n",
    )
    found = [(each.number, each.removable) for each in memory_blocks.blocks(tmp_path)]
    assert found == [(1, True), (2, False), (3, False), (4, False), (5, True)]


def test_a_block_on_two_nodes_is_on_none(put: Put, tmp_path: Path) -> None:
    """Its node is unknown."""
    put_block(put, 1)
    for node in ("node0", "node1"):
        (tmp_path / MEMORY / "memory1" / node).mkdir()
    assert memory_blocks.block(1, tmp_path).node is None


@pytest.mark.parametrize("text", ["", "xyz", "0", "-8", "6000000"])
def test_a_block_size_that_makes_no_sense_is_refused(put: Put, tmp_path: Path, text: str) -> None:
    """Addresses would be computed from it."""
    put(f"{MEMORY}/block_size_bytes", text)
    with pytest.raises(BadInputError):
        memory_blocks.block_size(tmp_path)


def test_a_kernel_without_memory_hotplug_says_so(tmp_path: Path) -> None:
    """By the error of the missing directory."""
    with pytest.raises(KernelError) as caught:
        memory_blocks.blocks(tmp_path)
    assert caught.value.errno == errno.ENOENT


def test_a_block_goes_offline_once(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second time nothing is written: the kernel would call it an invalid change."""
    put_block(put, 5)
    memory_blocks.take_offline(5, tmp_path)
    assert memory_blocks.block(5, tmp_path).state is BlockState.OFFLINE
    monkeypatch.setattr(memory_blocks, "write_text", lambda *_: pytest.fail("it was written again"))
    memory_blocks.take_offline(5, tmp_path)


@pytest.mark.parametrize(
    ("zone", "word"), [("Movable", "online_movable"), ("Normal", "online_kernel"), ("", "online"), ("Device", "online")]
)
def test_a_block_comes_back_into_its_zone(put: Put, tmp_path: Path, monkeypatch, zone: str, word: str) -> None:
    """Else a movable block might come back as a kernel block, and never go offline again."""
    put_block(put, 5, "offline")
    written = []

    def write(path: Path, text: str) -> None:
        written.append(text)
        path.write_text("online\n")

    monkeypatch.setattr(memory_blocks, "write_text", write)
    memory_blocks.bring_online(5, zone, tmp_path)
    assert written == [word]


def test_a_change_that_does_not_read_back_is_an_error(put: Put, tmp_path: Path, monkeypatch) -> None:
    """The write alone proves nothing."""
    put_block(put, 5)
    monkeypatch.setattr(memory_blocks, "write_text", lambda *_: None)
    with pytest.raises(KernelError, match="verify failed"):
        memory_blocks.take_offline(5, tmp_path)


def test_the_error_of_the_write_is_reported(put: Put, tmp_path: Path, monkeypatch) -> None:
    """EBUSY comes from write(2), not from close(2)."""
    put_block(put, 5)

    def busy(*_: object) -> int:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr("os.write", busy)
    with pytest.raises(KernelError) as caught:
        memory_blocks.take_offline(5, tmp_path)
    assert caught.value.errno == errno.EBUSY


def test_the_outermost_ranges_are_sorted_by_what_they_are(put: Put, tmp_path: Path) -> None:
    """Reserved pages inside of RAM do not count as ranges of their own."""
    put("proc/iomem", IOMEM)
    found = memory_blocks.physical_map(tmp_path)
    assert found is not None
    assert [str(each) for each in found.ram] == ["0x1000-0x9fbff", "0x100000-0x7fffffff", "0x100000000-0x13fffffff"]
    assert found.persistent == (MemoryRange(0x80000000, 0x10000000),)
    assert [each.start for each in found.reserved] == [0, 0x140000000]


def test_a_hidden_map_is_unknown(put: Put, tmp_path: Path) -> None:
    """Without CAP_SYS_ADMIN."""
    put("proc/iomem", "00000000-00000000 : System RAM\n")
    assert memory_blocks.physical_map(tmp_path) is None


def test_the_firmwares_memory_is_read(put: Put, tmp_path: Path) -> None:
    """System RAM only, in address order; unknown when the kernel does not keep it."""
    assert memory_blocks.firmware_ram(tmp_path) is None
    entries = [
        ("0x100000000", "0x17fffffff", "System RAM"),
        ("0x0", "0x9fbff", "System RAM"),
        ("0xf0000", "0xfffff", "Reserved"),
    ]
    for number, (start, end, kind) in enumerate(entries):
        for name, text in (("start", start), ("end", end), ("type", kind)):
            put(f"sys/firmware/memmap/{number}/{name}", text + "\n")
    assert memory_blocks.firmware_ram(tmp_path) == (MemoryRange(0, 0x9FC00), MemoryRange(1 << 32, 1 << 31))
    put("sys/firmware/memmap/0/start", "nonsense\n")
    with pytest.raises(BadInputError):
        memory_blocks.firmware_ram(tmp_path)


def test_set_aside_ranges_are_those_with_a_dollar() -> None:
    """Persistent and excluded ranges are something else."""
    line = CommandLine.parse("memmap=512M!1G,1G$5G quiet memmap=1G$4G memmap=2G@0")
    assert memory_blocks.set_aside(line) == (MemoryRange(4 << 30, 1 << 30), MemoryRange(5 << 30, 1 << 30))

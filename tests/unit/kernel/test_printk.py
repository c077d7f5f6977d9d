"""A kernel log out of another kernel's memory: a ring made by hand, whole, wrapped, damaged, and none at all."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.kernel import printk
from kupgrade.kernel.printk import KERNEL_MAP, Line, Memory

BASE = 0x40000000
SIZE = 4 << 20
IMAGE = BASE + (2 << 20)  # where the kernel lies: mapped by one page of 2 MiB
TEXT = KERNEL_MAP + 0x1000000
RELEASE = "6.12.48-rt"
COUNT_BITS, SIZE_BITS = 3, 8
PRB, DESCS, INFOS, DATA, TABLES = 0x0, 0x1000, 0x2000, 0x3000, 0x4000  # offsets in the image

INFO = f"""OSRELEASE={RELEASE}
BUILD-ID=00
PAGESIZE=4096
SYMBOL(init_top_pgt)={TEXT + TABLES:x}
SYMBOL(prb)={TEXT + PRB:x}
NUMBER(phys_base)={IMAGE - (TEXT - KERNEL_MAP)}
NUMBER(pgtable_l5_enabled)=0
SIZE(prb_desc)=24
SIZE(printk_info)=88
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
OFFSET(atomic_long_t.counter)=0
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
OFFSET(printk_info.seq)=0
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
"""


class Ring:
    """A kernel's memory with a log in it, written as printk writes it."""

    def __init__(self, info: str = INFO, first: int = 0) -> None:
        self.map = mmap.mmap(-1, SIZE)
        self.put(0x5000 + BASE, info.encode())
        at = IMAGE + TABLES
        pud, pmd = at + 0x1000, at + 0x2000
        self.word(at + 511 * 8, pud | 0x63)
        self.word(pud + 510 * 8, pmd | 0x63)
        self.word(pmd + 8 * 8, IMAGE | 0xE3)  # 0x1000000 >> 21
        ring = IMAGE + PRB + 0x800
        self.word(IMAGE + PRB, TEXT + PRB + 0x800)
        self.put(ring, struct.pack("<I4xQQQQ", COUNT_BITS, TEXT + DESCS, TEXT + INFOS, first, first))
        self.put(ring + 48, struct.pack("<I4xQ", SIZE_BITS, TEXT + DATA))
        self.ring, self.next, self.position, self.first = ring, first, 0, first

    def put(self, address: int, data: bytes) -> None:
        self.map[address - BASE : address - BASE + len(data)] = data

    def word(self, address: int, value: int) -> None:
        self.put(address, struct.pack("<Q", value))

    def say(self, text: str, level: int = 6, state: int = 2) -> None:
        number, size = self.next, 1 << SIZE_BITS
        data, length = text.encode(), 8 + -(-len(text) // 8) * 8
        begin, end = self.position, self.position + length
        at = begin % size
        if begin // size != (end - 1) // size:
            at, end = 0, (end // size) * size + length
        if data:
            self.put(IMAGE + DATA + at, struct.pack("<Q", number) + data)
            self.position = end
        index = number % (1 << COUNT_BITS)
        place = (begin, end) if data else (3, 3)
        self.put(IMAGE + DESCS + 24 * index, struct.pack("<QQQ", number | state << 62, *place))
        head = struct.pack("<QQHBB", number - self.first, number * 1_000_000, len(data), 0, level << 5 | 3)
        self.put(IMAGE + INFOS + 88 * index, head)
        self.word(self.ring + 24, number)
        if number - self.first >= 1 << COUNT_BITS:
            self.word(self.ring + 32, number - (1 << COUNT_BITS) + 1)
        self.next += 1

    def read(self) -> tuple[Line, ...]:
        return printk.read(Memory(self.map, BASE), RELEASE)


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    made.map.close()


def test_what_was_said_is_read(ring: Ring) -> None:
    """Text, seconds, level and number of each record; an empty line is one, too."""
    ring.say("Linux version")
    ring.say("", 4)
    ring.say("two\nlines", 0)
    assert ring.read() == (
        Line(0, 0.0, 6, "Linux version"), Line(1, 0.001, 4, ""), Line(2, 0.002, 0, "two\nlines"),
    )  # fmt: skip


def test_a_full_ring_holds_the_last_records(ring: Ring) -> None:
    """Records and text wrap around; what was overwritten is gone, the rest is whole."""
    for number in range(40):
        ring.say(f"line {number} " + "x" * (number % 13))
    found = ring.read()
    assert [line.seq for line in found] == list(range(32, 40))
    assert found[-1].text == "line 39 "


def test_a_record_that_is_being_written_is_left_out(ring: Ring) -> None:
    """Reserved, not yet committed; or its number is that of another turn."""
    ring.say("whole")
    ring.say("half", state=0)
    assert [line.text for line in ring.read()] == ["whole"]


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (RELEASE, "6.1.0", "no VMCOREINFO"),
        ("SYMBOL(prb)", "SYMBOL(log_buf)", "no VMCOREINFO"),
        ("SIZE(prb_desc)=24\n", "", "does not tell SIZE(prb_desc)"),
        (f"{TEXT + TABLES:x}", "ffffffff99000000", "no VMCOREINFO"),
        ("OFFSET(prb_desc_ring.count_bits)=0", "OFFSET(prb_desc_ring.count_bits)=8", "its ring has 2^"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_why(before: str, after: str, why: str) -> None:
    """Another release, another kind of log, addresses that lead nowhere, sizes that make no sense."""
    made = Ring(INFO.replace(before, after))
    made.say("x")
    with pytest.raises(KupgradeError, match=why.replace("(", r"\(").replace(")", r"\)").replace("^", r"\^")):
        made.read()
    made.map.close()


def test_nothing_outside_the_instance_is_read(ring: Ring) -> None:
    """A page table that points elsewhere is not followed."""
    with pytest.raises(KupgradeError, match="not the instance's memory"):
        Memory(ring.map, BASE).read(BASE + SIZE - 4, 8)
    with pytest.raises(KupgradeError, match="nothing is mapped"):
        printk.find(Memory(ring.map, BASE), RELEASE).physical(0x1000)

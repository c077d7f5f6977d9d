"""The kernel log of another kernel, read out of its memory: no agent is asked, so a dead kernel can be read, too.

Where everything is says the kernel itself: VMCOREINFO, a page of text that every kernel with kexec or crash dumps
keeps. Source: kernel/printk/printk_ringbuffer.[ch], Documentation/admin-guide/kdump/vmcoreinfo.rst. The ring is
lockless and is read while it is written: what does not fit together is left out.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kupgrade.errors import KupgradeError

PAGE = 4096
KERNEL_MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map
MARK = b"OSRELEASE="
ENTRY_ADDRESS = 0x000FFFFFFFFFF000
PRESENT, LARGE = 0x1, 0x80
COMMITTED, FINALIZED = 1, 2  # states of a descriptor, its two highest bits
MAX_LINES = 1 << 18
FACILITY_LEVELS = 7

_PAIR = re.compile(r"([A-Z]+)(?:\(([^)\n]*)\))?=(.*)")


@dataclass(frozen=True, slots=True)
class Line:
    """One record. `seconds`: since its kernel's start. `level`: 0 (emergency) to 7 (debug). `text` may be several."""

    seq: int
    seconds: float
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Physical memory from `base` on."""

    mapping: mmap.mmap
    base: int

    def read(self, address: int, size: int) -> bytes:
        """Raises KupgradeError for what lies outside."""
        at = address - self.base
        if at < 0 or size < 0 or at + size > len(self.mapping):
            raise KupgradeError("The kernel log cannot be read", f"{address:#x}+{size:#x} is not the instance's memory")
        return self.mapping[at : at + size]

    def word(self, address: int) -> int:
        """Eight bytes."""
        return int.from_bytes(self.read(address, 8), "little")


@dataclass(frozen=True, slots=True)
class Space:
    """The other kernel's address space: its VMCOREINFO, and its page table."""

    memory: Memory
    info: Mapping[str, str]

    def number(self, key: str) -> int:
        """A size, an offset or a number. Raises KupgradeError when it is not told."""
        try:
            return int(self.info[key])
        except (KeyError, ValueError):
            raise KupgradeError("The kernel log cannot be read", f"its kernel does not tell {key}") from None

    def symbol(self, name: str) -> int:
        """The address of a symbol."""
        try:
            return int(self.info[f"SYMBOL({name})"], 16)
        except (KeyError, ValueError):
            raise KupgradeError("The kernel log cannot be read", f"its kernel does not tell {name}") from None

    def offset(self, member: str) -> int:
        """The offset of a structure's member."""
        return self.number(f"OFFSET({member})")

    def physical(self, address: int) -> int:
        """Through the page table, as the processor would. Raises KupgradeError where nothing is mapped."""
        table = self.symbol("init_top_pgt") - KERNEL_MAP + self.number("NUMBER(phys_base)")
        shift = 48 if self.info.get("NUMBER(pgtable_l5_enabled)") == "1" else 39
        while True:
            entry = self.memory.word(table + (address >> shift & 511) * 8)
            if not entry & PRESENT:
                raise KupgradeError("The kernel log cannot be read", f"nothing is mapped at {address:#x}")
            table = entry & ENTRY_ADDRESS
            if shift == 12 or (entry & LARGE and shift <= 30):
                size = 1 << shift
                return (table & -size) | (address & size - 1)
            shift -= 9

    def read(self, address: int, size: int) -> bytes:
        """Virtual memory, page by page: adjoining pages need not lie side by side."""
        parts = []
        while size > 0:
            part = min(size, PAGE - address % PAGE)
            parts.append(self.memory.read(self.physical(address), part))
            address, size = address + part, size - part
        return b"".join(parts)

    def word(self, address: int) -> int:
        """Eight bytes."""
        return int.from_bytes(self.read(address, 8), "little")


def find(memory: Memory, release: str) -> Space:
    """Look for the VMCOREINFO of `release`. Raises KupgradeError when there is none (yet)."""
    at = memory.mapping.find(MARK)
    while at >= 0:
        if at % PAGE == 0:
            info = parse(memory.mapping[at : at + PAGE].split(b"\0")[0].decode(errors="replace"))
            if info.get("OSRELEASE") == release and "SYMBOL(prb)" in info:
                space = Space(memory, info)
                if _holds(space):
                    return space
        at = memory.mapping.find(MARK, at + 1)
    raise KupgradeError(
        "The kernel log of the instance cannot be found",
        "no VMCOREINFO of its release is in its memory",
        "Try again later; a kernel without CONFIG_VMCORE_INFO has none: [engine.spawn] serial gives it a serial port",
    )


def _holds(space: Space) -> bool:
    """Whether it is this kernel's: one that ran there before, or a copy in a file, leads nowhere."""
    try:
        return space.word(space.symbol("prb")) >= 1 << 63
    except KupgradeError:
        return False


def parse(text: str) -> dict[str, str]:
    """VMCOREINFO: lines KEY=VALUE and KEY(NAME)=VALUE; both parts of a key are kept as they stand."""
    found = {}
    for line in text.splitlines():
        match = _PAIR.fullmatch(line)
        if match:
            key = f"{match[1]}({match[2]})" if match[2] is not None else match[1]
            found[key] = match[3]
    return found


def read(memory: Memory, release: str) -> tuple[Line, ...]:
    """Every record that is still in the ring, oldest first. Raises KupgradeError."""
    return tuple(lines(find(memory, release)))


def lines(space: Space) -> Iterator[Line]:
    """Out of the ring that `prb` points to."""
    ring = space.word(space.symbol("prb"))
    descriptors = ring + space.offset("printk_ringbuffer.desc_ring")
    texts = ring + space.offset("printk_ringbuffer.text_data_ring")
    count_bits = _int(space, descriptors + space.offset("prb_desc_ring.count_bits"))
    size_bits = _int(space, texts + space.offset("prb_data_ring.size_bits"))
    if not 1 <= count_bits <= 24 or not 8 <= size_bits <= 30:
        raise KupgradeError(
            "The kernel log cannot be read", f"its ring has 2^{count_bits} records, 2^{size_bits} bytes"
        )
    descs = space.word(descriptors + space.offset("prb_desc_ring.descs"))
    infos = space.word(descriptors + space.offset("prb_desc_ring.infos"))
    counter = space.offset("atomic_long_t.counter")
    head = space.word(descriptors + space.offset("prb_desc_ring.head_id") + counter)
    tail = space.word(descriptors + space.offset("prb_desc_ring.tail_id") + counter)
    desc_size, info_size = space.number("SIZE(prb_desc)"), space.number("SIZE(printk_info)")
    data = space.read(space.word(texts + space.offset("prb_data_ring.data")), 1 << size_bits)
    every_desc = space.read(descs, desc_size << count_bits)
    every_info = space.read(infos, info_size << count_bits)
    state_at = space.offset("prb_desc.state_var") + counter
    block = space.offset("prb_desc.text_blk_lpos")
    first_at, next_at = (block + space.offset(f"prb_data_blk_lpos.{name}") for name in ("begin", "next"))
    mask = (1 << 62) - 1
    for step in range(min((head - tail & mask) + 1, 1 << count_bits, MAX_LINES)):
        number = tail + step & mask
        index = number & (1 << count_bits) - 1
        desc = every_desc[index * desc_size : (index + 1) * desc_size]
        state = _word(desc, state_at)
        if state & mask != number or state >> 62 not in (COMMITTED, FINALIZED):
            continue
        info = every_info[index * info_size : (index + 1) * info_size]
        length = struct.unpack_from("<H", info, space.offset("printk_info.text_len"))[0]
        text = _text(data, _word(desc, first_at), _word(desc, next_at), length)
        yield Line(
            seq=_word(info, space.offset("printk_info.seq")),
            seconds=_word(info, space.offset("printk_info.ts_nsec")) / 1e9,
            level=_level(space, info),
            text=text.decode(errors="replace"),
        )


def _level(space: Space, info: bytes) -> int:
    """`level` is a bit field of three bits behind the five of `flags`, behind the byte of `facility`."""
    return info[space.offset("printk_info.text_len") + 3] >> 5 & FACILITY_LEVELS


def _text(data: bytes, begin: int, end: int, length: int) -> bytes:
    """The text of a block, behind the eight bytes of its descriptor's ID; odd positions are blocks without data."""
    if begin & 1 or end & 1:
        return b""
    size = len(data)
    wraps = begin // size != (end - 1) // size
    at = 0 if wraps else begin % size
    return data[at + 8 : at + 8 + min(length, (end % size or size) - at - 8)]


def _int(space: Space, address: int) -> int:
    return int.from_bytes(space.read(address, 4), "little")


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")

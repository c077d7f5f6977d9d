"""Zero page, memory map and page tables: what a kernel that follows the boot protocol finds in them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.kernel import bootparams, e820, pagetables
from kupgrade.kernel.bootparams import BzImage
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import MapEntry, MemoryType

MIB, GIB = 1 << 20, 1 << 30
BOX = MemoryRange(0x140000000, GIB)
MAP = (MapEntry(MemoryRange(0x20000, 0x40000), MemoryType.RAM), MapEntry(BOX, MemoryType.RAM))


def a_bzimage(body: int = 4096, sectors: int = 3, **fields: int) -> bytes:
    """A bzImage as arch/x86/boot/header.S lays it out; `fields` replace header fields by offset names."""
    image = bytearray((sectors + 1) * 512 + body)
    values = {
        "setup_sects": ("<B", 0x1F1, sectors),
        "syssize": ("<I", 0x1F4, body // 16),
        "boot_flag": ("<H", 0x1FE, 0xAA55),
        "jump": ("<H", 0x200, 0x6AEB),
        "magic": ("<I", 0x202, 0x53726448),
        "protocol": ("<H", 0x206, 0x20F),
        "loadflags": ("<B", 0x211, 1),
        "alignment": ("<I", 0x230, 2 * MIB),
        "relocatable": ("<B", 0x234, 1),
        "xloadflags": ("<H", 0x236, 0x3F),
        "cmdline_size": ("<I", 0x238, 2047),
        "pref_address": ("<Q", 0x258, 16 * MIB),
        "init_size": ("<I", 0x260, 64 * MIB),
    }
    for name, (form, offset, value) in values.items():
        struct.pack_into(form, image, offset, fields.pop(name, value))
    assert not fields
    image[-body:] = bytes(number % 251 for number in range(body))
    return bytes(image)


def page(image: BzImage, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "load_address": 0x141000000,
        "cmdline": 0x14000B000,
        "rsdp": 0x140010000,
        "memory_map": MAP,
    }
    return bootparams.zero_page(image, **{**values, **changes})


def test_a_bzimage_is_taken_apart() -> None:
    """The header as it is copied, the body from behind the setup sectors."""
    data = a_bzimage()
    image = bootparams.parse(data)
    assert (image.init_size, image.alignment, image.preferred) == (64 * MIB, 2 * MIB, 16 * MIB)
    assert image.header == data[0x1F1:0x26C]
    assert bytes(image.body) == data[2048:]
    assert (image.protocol, image.cmdline_limit) == (0x20F, 2047)


def test_what_is_signed_behind_the_body_is_left_out() -> None:
    """A signature hangs behind the image; it is no code."""
    data = a_bzimage()
    assert len(bootparams.parse(data + b"signature").body) == 4096


def test_no_setup_sectors_mean_four() -> None:
    """As boot.rst says for ancient images."""
    data = bytearray(a_bzimage(sectors=4))
    data[0x1F1] = 0
    assert len(bootparams.parse(bytes(data)).body) == 4096


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"magic": 0}, "HdrS"),
        ({"boot_flag": 0}, "HdrS"),
        ({"protocol": 0x20B}, "older than 2.12"),
        ({"xloadflags": 2}, "XLF_KERNEL_64"),
        ({"xloadflags": 1}, "ABOVE_4G"),
        ({"relocatable": 0}, "relocatable"),
        ({"jump": 0xFFEB}, "setup header ends"),
        ({"jump": 0x10EB}, "setup header ends"),
        ({"syssize": 257}, "truncated"),
        ({"syssize": 0}, "truncated"),
        ({"alignment": 0}, "makes no sense"),
        ({"alignment": 3 * MIB}, "makes no sense"),
        ({"init_size": 100}, "makes no sense"),
    ],
)
def test_images_that_cannot_be_entered_are_refused(fields: dict[str, int], why: str) -> None:
    """Each with what is missing."""
    with pytest.raises(BadInputError, match=why):
        bootparams.parse(a_bzimage(**fields))


@given(st.integers(0, 6143))
def test_truncated_images_are_refused(length: int) -> None:
    """Wherever they were cut."""
    with pytest.raises(BadInputError):
        bootparams.parse(a_bzimage()[:length])


@given(st.lists(st.tuples(st.integers(0x1F1, 0x28F), st.integers(0, 255)), max_size=8))
def test_arbitrary_headers_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    """No header makes the reader fail in another way, or makes the copied header reach too far."""
    data = bytearray(a_bzimage())
    for at, value in changes:
        data[at] = value
    try:
        image = bootparams.parse(bytes(data))
    except BadInputError:
        return
    assert len(image.header) + 0x1F1 <= 0x290


def test_the_zero_page_says_where_everything_is() -> None:
    """Addresses above 4 GiB are split as boot.rst wants; what is not set stays zero, the sentinel above all."""
    image = bootparams.parse(a_bzimage())
    whole = page(image, initrd=MemoryRange(0x17F000000, 5 * MIB + 1), first_setup_data=0x14000A000)

    def field(form: str, at: int) -> int:
        return int(struct.unpack_from(form, whole, at)[0])

    assert len(whole) == 4096
    assert field("<Q", 0x70) == 0x140010000
    assert field("<I", 0x228) | field("<I", 0xC8) << 32 == 0x14000B000
    assert field("<I", 0x218) | field("<I", 0xC0) << 32 == 0x17F000000
    assert field("<I", 0x21C) | field("<I", 0xC4) << 32 == 5 * MIB + 1
    assert (field("<Q", 0x250), field("<B", 0x210), field("<B", 0x1EF)) == (0x14000A000, 0xFF, 0)
    assert whole[:0x70] == bytes(0x70)  # screen_info and all before the RSDP
    assert field("<I", 0x202) == 0x53726448
    assert field("<I", 0x260) == 64 * MIB
    count = field("<B", 0x1E8)
    assert e820.decode(whole[0x2D0 : 0x2D0 + 20 * count]) == MAP
    assert not any(whole[0x2D0 + 20 * count :])
    assert page(image)[0x218:0x220] == bytes(8)


def test_a_load_address_that_is_not_aligned_is_refused() -> None:
    """The kernel would move itself, over what lies beside it."""
    with pytest.raises(BadInputError, match="multiples of 0x200000"):
        page(bootparams.parse(a_bzimage()), load_address=0x141001000)


def test_command_lines_are_ended_and_bounded() -> None:
    """ASCII, no NUL inside, not longer than the kernel takes."""
    image = bootparams.parse(a_bzimage(cmdline_size=10))
    assert bootparams.cmdline_bytes(image, "quiet ro") == b"quiet ro\0"
    for bad in ("x" * 11, "a\0b", "ä"):
        with pytest.raises(BadInputError):
            bootparams.cmdline_bytes(image, bad)


def test_setup_data_is_a_list() -> None:
    """Next, type, length, payload."""
    node = bootparams.setup_data(bootparams.SetupData.RNG_SEED, b"seed", 0x1234)
    assert struct.unpack_from("<QII", node) == (0x1234, 9, 4)
    assert node[16:] == b"seed"


entries = st.lists(
    st.tuples(st.integers(1, 1 << 30), st.integers(0, 1 << 30), st.sampled_from(MemoryType)), min_size=1, max_size=128
)


@given(entries)
@settings(max_examples=50)
def test_memory_maps_round_trip(parts: list[tuple[int, int, MemoryType]]) -> None:
    """Up to 128 entries in order."""
    at, found = 0, []
    for size, gap, kind in parts:
        found.append(MapEntry(MemoryRange(at + gap, size), kind))
        at += gap + size
    assert e820.decode(e820.encode(found)) == tuple(found)


@pytest.mark.parametrize(
    "starts", [[], [0, 0], [0, 4095], [8192, 0], [number * 4096 for number in range(129)]], ids=str
)
def test_memory_maps_that_linux_would_have_to_repair_are_refused(starts: list[int]) -> None:
    """Empty, double, overlapping, out of order, too long."""
    with pytest.raises(BadInputError):
        e820.encode([MapEntry(MemoryRange(start, 4096), MemoryType.RAM) for start in starts])


@given(st.binary(max_size=100))
def test_arbitrary_memory_maps_are_read_or_refused(data: bytes) -> None:
    """Torn, of unknown types, of impossible size."""
    try:
        e820.decode(data)
    except BadInputError:
        pass


boxes = st.builds(
    lambda start, size: MemoryRange(start << 21, size << 21), st.integers(1, (1 << 25) - 2049), st.integers(1, 2048)
)


@given(boxes, st.booleans(), st.data())
@settings(max_examples=40, deadline=None)
def test_page_tables_map_to_the_same_address(box: MemoryRange, gib_pages: bool, data: st.DataObject) -> None:
    """All of the box and of the low 4 GiB, at any address up to 46 bits, across 512 GiB boundaries too."""
    base = 0x100000
    tables = pagetables.identity(base, box, 1 << 20, gib_pages=gib_pages)
    assert len(tables) % 4096 == 0
    inside = data.draw(st.integers(box.start, box.end - 1))
    for address in (0, 0x1234567, 4 * GIB - 1, box.start, box.end - 1, inside):
        assert pagetables.translate(tables, base, address) == address
    for outside in (box.end - 1 + 2 * GIB, box.start - 2 * GIB):
        if outside >= 4 * GIB:
            assert pagetables.translate(tables, base, outside) is None


def test_pages_of_one_gib_stay_above_4_gib() -> None:
    """Below, device memory and RAM share a GiB; above, the tables become small."""
    high = MemoryRange(1 << 40, 64 * GIB)
    small, large = (pagetables.identity(0, high, 1 << 20, gib_pages=gib) for gib in (False, True))
    assert (len(small) // 4096, len(large) // 4096) == (1 + 2 + 4 + 64, 1 + 2 + 4)
    leaf = struct.unpack_from("<Q", large, 2 * 4096)[0]
    assert leaf == 1 << 40 | 0x83
    assert all(entry & 0x80 == 0 for entry in struct.unpack_from("<4Q", large, 4096))


@pytest.mark.parametrize(
    ("base", "box", "limit"),
    [
        (0x800, BOX, 1 << 20),
        (0, MemoryRange((1 << 46) - 4096, 8192), 1 << 20),
        (0, BOX, 6 * 4096),
    ],
)
def test_page_tables_out_of_reach_or_room_are_refused(base: int, box: MemoryRange, limit: int) -> None:
    """Not aligned, above 46 bits, longer than their place."""
    with pytest.raises(BadInputError):
        pagetables.identity(base, box, limit)

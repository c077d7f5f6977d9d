"""AML: lengths and names at their limits, integers, resource descriptors."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.kernel import aml
from kupgrade.model.machine import MemoryRange


def read_length(data: bytes) -> tuple[int, int]:
    """(value, bytes it takes) of a PkgLength, by section 20.2.4."""
    extra = data[0] >> 6
    if extra == 0:
        return data[0] & 0x3F, 1
    assert data[0] & 0x30 == 0
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + extra], "little") << 4, 1 + extra


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (0, 1),
        (62, 1),
        (63, 2),
        (4093, 2),
        (4094, 3),
        ((1 << 20) - 4, 3),
        ((1 << 20) - 3, 4),
        ((1 << 28) - 5, 4),
    ],
)
def test_lengths_at_the_limits_of_their_encodings(content: int, size: int) -> None:
    """The shortest form is used, and it counts itself."""
    encoded = aml.package_length(content)
    assert len(encoded) == size
    assert read_length(encoded) == (content + size, size)


def test_a_block_beyond_28_bits_is_refused() -> None:
    """There is no encoding for it."""
    with pytest.raises(BadInputError):
        aml.package_length((1 << 28) - 4)


@given(st.integers(0, (1 << 28) - 5))
def test_every_length_reads_back(content: int) -> None:
    """Value and size agree with a reader written from the specification."""
    encoded = aml.package_length(content)
    assert read_length(encoded) == (content + len(encoded), len(encoded))


@given(st.integers(0, (1 << 64) - 1))
def test_integers_take_their_shortest_form(value: int) -> None:
    """Opcode and little-endian bytes."""
    encoded = aml.integer(value)
    sizes = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}
    if value < 2:
        assert encoded == bytes([value])
    else:
        size = sizes[encoded[0]]
        assert (len(encoded), int.from_bytes(encoded[1:], "little")) == (1 + size, value)
        assert size == 1 or value >= 1 << 8 * (size // 2)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integers_beyond_64_bits_are_refused(value: int) -> None:
    """Nothing is cut off."""
    with pytest.raises(BadInputError):
        aml.integer(value)


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("_HID", b"_HID"),
        ("AB", b"AB__"),
        ("\\_SB", b"\\_SB_"),
        ("\\", b"\\\0"),
        ("^^A", b"^^A___"),
        ("\\_SB.PC10", b"\\\x2e_SB_PC10"),
        ("A.B.C", b"\x2f\x03A___B___C___"),
    ],
)
def test_names_are_padded_and_joined(path: str, encoded: bytes) -> None:
    """One, two and more segments; root and parent prefixes."""
    assert aml.name_string(path) == encoded


@pytest.mark.parametrize("path", ["", "ABCDE", "1AB", "a", "A..B", "\\\\A", "A.", ".".join(["A"] * 256)])
def test_names_that_cannot_be_are_refused(path: str) -> None:
    """Too long, of other letters, empty in the middle, of too many segments."""
    with pytest.raises(BadInputError):
        aml.name_string(path)


def test_eisa_ids_are_packed_as_in_the_specification() -> None:
    """PNP0A08 is 0x080AD041 on real firmware."""
    assert aml.eisa_id("PNP0A08") == b"\x0c\x41\xd0\x0a\x08"
    with pytest.raises(BadInputError):
        aml.eisa_id("PNPXYZ")


def test_a_window_has_64_bit_addresses() -> None:
    """Minimum, maximum and length of a QWord descriptor; prefetchable is in the flags."""
    window = aml.window_memory(MemoryRange(0x380000000000, 0x8000000), prefetchable=True)
    tag, length, kind, general, specific, zero, first, last, offset, size = struct.unpack("<BHBBBQQQQQ", window)
    assert (tag, length, kind, len(window)) == (0x8A, len(window) - 3, 0, 46)
    assert (general, specific) == (0x0C, 0x07)
    assert (zero, first, last, offset, size) == (0, 0x380000000000, 0x380007FFFFFF, 0, 0x8000000)


@pytest.mark.parametrize(
    "build",
    [
        lambda: aml.memory32_fixed(MemoryRange(0xFFFFF000, 0x2000)),
        lambda: aml.word_bus_numbers(3, 2),
        lambda: aml.word_bus_numbers(0, 256),
        lambda: aml.io_ports(0xFFFC, 8),
        lambda: aml.io_ports(0x3F8, 0),
        lambda: aml.string("ä"),
        lambda: aml.package(*[b"\0"] * 256),
    ],
)
def test_what_a_form_cannot_hold_is_refused(build) -> None:
    """Never cut off or wrapped around."""
    with pytest.raises(BadInputError):
        build()

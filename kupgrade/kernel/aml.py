"""ACPI Machine Language: the few terms and resource descriptors that the tables of a spawned kernel need.

Source: ACPI 6.5, chapter 20 (AML), section 6.4 (resource descriptors). Every builder returns the encoded bytes and
raises BadInputError for what cannot be encoded.
"""

from __future__ import annotations

import re
import struct

from kupgrade.errors import BadInputError
from kupgrade.model.machine import MemoryRange

_SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
_EISA = re.compile(r"[A-Z]{3}[0-9A-F]{4}")

# Opcodes, ACPI 6.5 section 20.3
_ZERO, _ONE, _NAME, _BYTE, _WORD, _DWORD, _STRING, _QWORD = 0x00, 0x01, 0x08, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
_SCOPE, _BUFFER, _PACKAGE, _DUAL_NAME, _MULTI_NAME, _DEVICE = 0x10, 0x11, 0x12, 0x2E, 0x2F, b"\x5b\x82"

PACKAGE_LIMIT = 1 << 28  # PkgLength has at most 28 bits, its own bytes included

# General flags of the address space descriptors, section 6.4.3.5
_CONSUMER, _MIN_FIXED, _MAX_FIXED = 1, 1 << 2, 1 << 3
# Type specific flags of memory, table 6.47
_READ_WRITE, _CACHEABLE, _PREFETCHABLE = 1, 1 << 1, 3 << 1


def package_length(content: int) -> bytes:
    """PkgLength for `content` bytes that follow it (section 20.2.4); it counts its own bytes too."""
    if content + 1 < 1 << 6:
        return bytes([content + 1])
    for extra in (1, 2, 3):
        total = content + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 15]) + (total >> 4).to_bytes(extra, "little")
    raise BadInputError("A block of AML is too long", f"{content} bytes, the limit is {PACKAGE_LIMIT - 5}")


def _packaged(opcode: bytes, body: bytes) -> bytes:
    return opcode + package_length(len(body)) + body


def name_string(path: str) -> bytes:
    r"""A name (section 20.2.2): \_SB_.PC10, ^ABCD or ABCD; segments are padded with _ to four characters."""
    rest = path.lstrip("^") if path.startswith("^") else path.removeprefix("\\")
    prefix = path[: len(path) - len(rest)]
    segments = rest.split(".") if rest else []
    if not all(_SEGMENT.fullmatch(segment) for segment in segments) or not (segments or prefix):
        raise BadInputError(f"{path!r:.60} is not a name in AML", "expected segments of up to four of A-Z, 0-9 and _")
    names = b"".join(segment.encode().ljust(4, b"_") for segment in segments)
    match len(segments):
        case 0:
            form = b""
            names = b"\0"  # NullName
        case 1:
            form = b""
        case 2:
            form = bytes([_DUAL_NAME])
        case count if count < 256:
            form = bytes([_MULTI_NAME, count])
        case _:
            raise BadInputError("A name in AML has too many segments", f"{len(segments)}, the limit is 255")
    return prefix.encode() + form + names


def integer(value: int) -> bytes:
    """An integer constant in its shortest form (section 20.2.3)."""
    if value == 0:
        return bytes([_ZERO])
    if value == 1:
        return bytes([_ONE])
    for opcode, size in ((_BYTE, 1), (_WORD, 2), (_DWORD, 4), (_QWORD, 8)):
        if 0 <= value < 1 << 8 * size:
            return bytes([opcode]) + value.to_bytes(size, "little")
    raise BadInputError(f"{value} does not fit into 64 bits")


def string(text: str) -> bytes:
    """A string constant: ASCII without NUL."""
    if not text.isascii() or "\0" in text:
        raise BadInputError(f"{text!r:.60} cannot be a string in AML", "it is not ASCII")
    return bytes([_STRING]) + text.encode() + b"\0"


def buffer(data: bytes) -> bytes:
    """Buffer() {data}."""
    return _packaged(bytes([_BUFFER]), integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """Package() {elements}; at most 255."""
    if len(elements) > 255:
        raise BadInputError("A package in AML has too many elements", f"{len(elements)}, the limit is 255")
    return _packaged(bytes([_PACKAGE]), bytes([len(elements)]) + b"".join(elements))


def name(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return bytes([_NAME]) + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) {terms}."""
    return _packaged(bytes([_SCOPE]), name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) {terms}."""
    return _packaged(_DEVICE, name_string(path) + b"".join(terms))


def eisa_id(text: str) -> bytes:
    """EisaId ("PNP0A08"): three letters of 5 bits and four hex digits, big endian, as an integer (section 19.6.37)."""
    if not _EISA.fullmatch(text):
        raise BadInputError(f"{text!r:.40} is not an EISA ID", "expected something like PNP0C02")
    first, second, third = (ord(letter) - ord("@") for letter in text[:3])
    value = first << 26 | second << 21 | third << 16 | int(text[3:], 16)
    return integer(int.from_bytes(value.to_bytes(4, "big"), "little"))


def resources(*descriptors: bytes) -> bytes:
    """Name (_CRS, ResourceTemplate () {descriptors}), closed by an end tag without a checksum (section 6.4.2.9)."""
    return name("_CRS", buffer(b"".join(descriptors) + b"\x79\0"))


def io_ports(base: int, count: int) -> bytes:
    """IO (Decode16): `count` ports from `base` on, neither to be moved (section 6.4.2.5)."""
    if not (0 <= base <= 0xFFFF and 0 < count <= 0xFF and base + count <= 0x10000):
        raise BadInputError(f"{count} ports at {base:#x} are no range of I/O ports")
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def memory32_fixed(range_: MemoryRange) -> bytes:
    """Memory32Fixed (ReadWrite) for a range below 4 GiB (section 6.4.3.4)."""
    if range_.end > 1 << 32:
        raise BadInputError(f"{range_} does not lie below 4 GiB")
    return struct.pack("<BHBII", 0x86, 9, _READ_WRITE, range_.start, range_.size)


def word_bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber (ResourceProducer): PCI buses `first` to `last` (section 6.4.3.5.3)."""
    if not 0 <= first <= last <= 255:
        raise BadInputError(f"{first} to {last} are no PCI buses")
    flags = _MIN_FIXED | _MAX_FIXED
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, flags, 0, 0, first, last, 0, last - first + 1)


def _qword_memory(range_: MemoryRange, general: int, specific: int) -> bytes:
    general |= _MIN_FIXED | _MAX_FIXED
    return struct.pack(
        "<BHBBBQQQQQ", 0x8A, 43, 0, general, specific, 0, range_.start, range_.end - 1, 0, range_.size
    )  # section 6.4.3.5.1


def window_memory(range_: MemoryRange, prefetchable: bool) -> bytes:
    """QWordMemory (ResourceProducer): a range that a host bridge passes on to its bus."""
    return _qword_memory(range_, 0, _READ_WRITE | (_PREFETCHABLE if prefetchable else 0))


def own_memory(range_: MemoryRange, cacheable: bool) -> bytes:
    """QWordMemory (ResourceConsumer): a range that a device takes up itself."""
    return _qword_memory(range_, _CONSUMER, _READ_WRITE | (_CACHEABLE if cacheable else 0))

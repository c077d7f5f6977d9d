"""Flattened device trees: a reader of their bytes.

Source: the Devicetree Specification, chapter 5 ("Flattened Devicetree (DTB) Format"). Versions 16 and 17. Numbers of
the format are big-endian; what properties hold is the business of whoever wrote them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from kupgrade.errors import BadInputError

MAGIC = 0xD00DFEED
OLDEST, NEWEST = 16, 17  # version 17 added the size of the structure block

BEGIN_NODE, END_NODE, PROPERTY, NOP, END = 1, 2, 3, 4, 9
DEEPEST = 64  # levels; trees of kernels have a handful

# magic, totalsize, off_dt_struct, off_dt_strings, off_mem_rsvmap, version, last_comp_version, boot_cpuid_phys,
# size_dt_strings; then size_dt_struct
_HEADER = struct.Struct(">9I")
_WORD = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Node:
    """One node; the root's name is empty. Properties and children stand in the order of the tree."""

    name: str
    properties: Mapping[str, bytes] = field(default_factory=dict)
    children: tuple[Node, ...] = ()

    def child(self, name: str) -> Node | None:
        """The first child of that name."""
        return next((each for each in self.children if each.name == name), None)

    def text(self, name: str) -> str | None:
        """A property's first string; None: there is no such property, or it is not a string."""
        value = self.properties.get(name)
        if value is None or b"\0" not in value:
            return None
        raw = value.partition(b"\0")[0]
        return raw.decode("ascii") if raw.isascii() else None


def _bad(at: int, why: str) -> BadInputError:
    return BadInputError("The device tree is damaged", f"at offset {at:#x}: {why}")


class _Reader:
    """Reads one block, whose bounds were checked, and never beyond it. Offsets are those of the whole tree."""

    __slots__ = ("at", "data", "end", "strings", "strings_end")

    def __init__(self, data: bytes, structure: tuple[int, int], strings: tuple[int, int]) -> None:
        self.data = data
        self.at, self.end = structure
        self.strings, self.strings_end = strings

    def word(self) -> int:
        if self.at + 4 > self.end:
            raise _bad(self.at, "the structure block ends too early")
        self.at += 4
        return int(_WORD.unpack_from(self.data, self.at - 4)[0])

    def align(self, length: int) -> None:
        self.at += length + -length % 4
        if self.at > self.end:
            raise _bad(self.end, "the structure block ends too early")

    def string(self, start: int, end: int) -> bytes:
        stop = self.data.find(b"\0", start, end)
        if stop < 0:
            raise _bad(start, "a name without an end")
        if not self.data[start:stop].isascii():
            raise _bad(start, "a name that is not ASCII")
        return self.data[start:stop]

    def node_name(self) -> str:
        raw = self.string(self.at, self.end)
        self.align(len(raw) + 1)
        return raw.decode("ascii")

    def property(self) -> tuple[str, bytes]:
        length, name_at = self.word(), self.word()
        if length > self.end - self.at:
            raise _bad(self.at, f"a property of {length} bytes reaches beyond the structure block")
        value = self.data[self.at : self.at + length]
        self.align(length)
        if name_at >= self.strings_end - self.strings:
            raise _bad(self.strings + name_at, "a property's name lies beyond the strings block")
        return self.string(self.strings + name_at, self.strings_end).decode("ascii"), value


def _block(total: int, offset: int, size: int, what: str) -> tuple[int, int]:
    if offset < _HEADER.size or offset + size > total:
        raise _bad(offset, f"the {what} block of {size} bytes does not lie in the tree's {total} bytes")
    return offset, offset + size


def _reader(data: bytes) -> _Reader:
    if len(data) < _HEADER.size:
        raise _bad(len(data), "it ends inside the header")
    magic, total, structure, strings, _reserved, version, compatible, _cpu, strings_size = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise _bad(0, f"it begins with {magic:#x} instead of {MAGIC:#x}")
    if version < OLDEST or compatible > NEWEST:
        raise _bad(20, f"its version is {version}, readable as {compatible}; known are {OLDEST} to {NEWEST}")
    if not _HEADER.size <= total <= len(data):
        raise _bad(4, f"it should have {total} bytes, there are {len(data)}")
    size = total - structure
    if version >= 17:
        if total < _HEADER.size + 4:
            raise _bad(4, "it ends inside the header")
        size = _WORD.unpack_from(data, _HEADER.size)[0]
    if structure % 4:
        raise _bad(8, f"the structure block begins at {structure:#x}, which is no multiple of four")
    return _Reader(data, _block(total, structure, size, "structure"), _block(total, strings, strings_size, "strings"))


@dataclass(slots=True)
class _Draft:
    name: str
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def done(self) -> Node:
        return Node(self.name, self.properties, tuple(self.children))


def parse(data: bytes) -> Node:
    """The root of the tree. Raises BadInputError naming the offset, whatever the bytes are; `data` may go on behind."""
    reader = _reader(data)
    open_nodes: list[_Draft] = []
    root: Node | None = None
    while True:
        at = reader.at
        match reader.word():
            case 4:  # NOP
                continue
            case 1:  # BEGIN_NODE
                if root is not None or len(open_nodes) >= DEEPEST:
                    raise _bad(at, "a second root" if root is not None else f"more than {DEEPEST} levels")
                open_nodes.append(_Draft(reader.node_name()))
            case 3 if open_nodes and not open_nodes[-1].children:  # PROPERTY
                name, value = reader.property()
                if name in open_nodes[-1].properties:
                    raise _bad(at, f"the property {name} a second time")
                open_nodes[-1].properties[name] = value
            case 2 if open_nodes:  # END_NODE
                node = open_nodes.pop().done()
                if open_nodes:
                    open_nodes[-1].children.append(node)
                else:
                    root = node
            case 9 if root is not None:  # END
                return root
            case token:
                raise _bad(at, f"the token {token:#x} has no place here")

"""What of an ext4 file system has to be known to write its journal from outside: superblock, and where the journal is.

Source: Documentation/filesystems/ext4 (super.rst, group_descr.rst, inodes.rst, ifork.rst). Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from kupgrade.errors import BadInputError

BLOCK = 4096  # the one block size that is known here
SUPER = 1024  # where the superblock is, in block 0
SUPER_SIZE = 1024
JOURNAL_INODE = 8

_MAGIC, _LOG_BLOCK_SIZE, _INODE_SIZE, _COMPAT, _INCOMPAT, _RO_COMPAT = 0x38, 0x18, 0x58, 0x5C, 0x60, 0x64
_JOURNAL_INUM, _DESC_SIZE, _CHECKSUM = 0xE0, 0xFE, 0x3FC
HAS_JOURNAL, RECOVER, BIT64, METADATA_CSUM = 0x4, 0x4, 0x80, 0x400
_TABLE_LOW, _TABLE_HIGH = 0x08, 0x28  # in a group's descriptor: its inode table
_FLAGS, _I_BLOCK, _EXTENTS_FLAG = 0x20, 0x28, 0x80000  # in an inode
_EXTENT_MAGIC, _MOST = 0xF30A, 32768  # a longer extent is one that was never written
_NODE, _ENTRY = struct.Struct("<HHHHI"), struct.Struct("<IHHI")

Read = Callable[[int], bytes]  # the content of a block


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return tuple(found)


_CRC = _table()


def crc32c(data: bytes, crc: int = 0xFFFFFFFF) -> int:
    """As ext4 stores it: begun with ones, not inverted at the end."""
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc


@dataclass(frozen=True, slots=True)
class Super:
    """Block 0 with the superblock in it."""

    block: bytes

    @classmethod
    def of(cls, block: bytes) -> Super:
        """Raises BadInputError for anything that is no ext4 with blocks of 4 KiB and a journal within."""
        found = cls(block)
        if found._u16(_MAGIC) != 0xEF53 or found._u32(_LOG_BLOCK_SIZE) != 2:
            raise BadInputError("There is no ext4 with blocks of 4 KiB")
        if not found._u32(_COMPAT) & HAS_JOURNAL or found._u32(_JOURNAL_INUM) != JOURNAL_INODE:
            raise BadInputError("The file system has no journal within")
        return found

    def _u16(self, at: int) -> int:
        return int.from_bytes(self.block[SUPER + at : SUPER + at + 2], "little")

    def _u32(self, at: int) -> int:
        return int.from_bytes(self.block[SUPER + at : SUPER + at + 4], "little")

    @property
    def needs_recovery(self) -> bool:
        """Whether the journal is to be replayed."""
        return bool(self._u32(_INCOMPAT) & RECOVER)

    @property
    def wide(self) -> bool:
        """Whether block numbers have 64 bits."""
        return bool(self._u32(_INCOMPAT) & BIT64)

    def recovering(self) -> Super:
        """The same, with the word that the journal is to be replayed."""
        new = bytearray(self.block)
        struct.pack_into("<I", new, SUPER + _INCOMPAT, self._u32(_INCOMPAT) | RECOVER)
        if self._u32(_RO_COMPAT) & METADATA_CSUM:
            struct.pack_into("<I", new, SUPER + _CHECKSUM, crc32c(bytes(new[SUPER : SUPER + _CHECKSUM])))
        return Super(bytes(new))

    def journal_map(self, read: Read) -> tuple[int, ...]:
        """The blocks of the journal, in its order. Raises BadInputError when they cannot be told."""
        descriptor = read(1)
        wide = self.wide and self._u16(_DESC_SIZE) >= 64
        table = int.from_bytes(descriptor[_TABLE_LOW : _TABLE_LOW + 4], "little")
        table |= int.from_bytes(descriptor[_TABLE_HIGH : _TABLE_HIGH + 4], "little") << 32 if wide else 0
        at = (JOURNAL_INODE - 1) * self._u16(_INODE_SIZE)
        inode = read(table + at // BLOCK)[at % BLOCK :]
        if not int.from_bytes(inode[_FLAGS : _FLAGS + 4], "little") & _EXTENTS_FLAG:
            raise BadInputError("The journal is not mapped by extents")
        return tuple(_blocks(inode[_I_BLOCK : _I_BLOCK + 60], read, depth=1))


def _blocks(node: bytes, read: Read, depth: int) -> list[int]:
    magic, entries, _, deep, _ = _NODE.unpack_from(node)
    if magic != _EXTENT_MAGIC or deep > depth or _NODE.size + entries * _ENTRY.size > len(node):
        raise BadInputError("The extents of the journal cannot be read", f"depth {deep}")
    found: list[int] = []
    for number in range(entries):
        first, low, high, start = _ENTRY.unpack_from(node, _NODE.size + number * _ENTRY.size)
        if deep:  # an index: block, leaf's low word, its high half
            first, leaf, above, _ = struct.unpack_from("<IIHH", node, _NODE.size + number * _ENTRY.size)
            below = _blocks(read(leaf | above << 32), read, depth=0)
        else:
            below = list(range(high << 32 | start, (high << 32 | start) + low))
            if low > _MOST:
                raise BadInputError("A part of the journal was never written")
        if first != len(found):
            raise BadInputError("The journal has a hole")
        found += below
    return found

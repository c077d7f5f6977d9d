"""One transaction in an ext4 journal, written from outside while the file system is frozen: whoever mounts it next
replays it, whole or not at all.

Source: Documentation/filesystems/ext4/journal.rst, fs/jbd2/recovery.c. Big-endian. The journal is told to have no
checksums: its blocks are flushed before the superblock that leads to them is written, so none of them is ever read
torn; the kernel sets its features again when it mounts.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kupgrade.errors import BadInputError
from kupgrade.kernel.ext4 import BLOCK

MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _SUPER_V2 = 1, 2, 4
_HEADER = struct.Struct(">III")  # magic, what it is, transaction
_SUPER = struct.Struct(
    ">IIIII"
)  # block size, length, first block of the log, expected transaction, where the log starts
_COMPAT, _INCOMPAT, _FAST_BLOCKS = 0x24, 0x28, 0x54
_REVOKE, _BIT64, _ASYNC, _CSUM2, _CSUM3, _FAST = 1, 2, 4, 8, 0x10, 0x20
_KNOWN = _REVOKE | _BIT64 | _ASYNC | _CSUM2 | _CSUM3 | _FAST
_DEFAULT_FAST = 256  # blocks of the fast commit area when its number is 0
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
# Far from any number that the kernel comes to: what is left in the journal never fits behind a transaction of its own.
FAR = 0x40000000


@dataclass(frozen=True, slots=True)
class JournalSuper:
    """The journal's first block."""

    block: bytes

    @classmethod
    def of(cls, block: bytes) -> JournalSuper:
        """Raises BadInputError when it is none, or of a kind that is not known."""
        found = cls(block)
        magic, kind, _ = _HEADER.unpack_from(block)
        if magic != MAGIC or kind != _SUPER_V2 or found._fields[0] != BLOCK or found._u32(_INCOMPAT) & ~_KNOWN:
            raise BadInputError("The journal's superblock is of an unknown kind")
        return found

    @property
    def _fields(self) -> tuple[int, ...]:
        return _SUPER.unpack_from(self.block, _HEADER.size)

    def _u32(self, at: int) -> int:
        return int(struct.unpack_from(">I", self.block, at)[0])

    @property
    def empty(self) -> bool:
        """Whether there is nothing to be replayed."""
        return self._fields[4] == 0

    @property
    def transaction(self) -> int:
        """The number that ours gets."""
        return (self._fields[3] + FAR) & 0xFFFFFFFF or 1

    @property
    def log(self) -> range:
        """The journal's blocks that hold transactions."""
        fast = (self._u32(_FAST_BLOCKS) or _DEFAULT_FAST) if self._u32(_INCOMPAT) & _FAST else 0
        return range(self._fields[2], self._fields[1] - fast)

    def leading(self, wide: bool) -> JournalSuper:
        """The same, leading to our transaction at the log's begin."""
        new = bytearray(self.block)
        size, length, first, _, _ = self._fields
        _SUPER.pack_into(new, _HEADER.size, size, length, first, self.transaction, first)
        struct.pack_into(">I", new, _COMPAT, 0)
        struct.pack_into(">I", new, _INCOMPAT, _BIT64 if wide else 0)
        return JournalSuper(bytes(new))


def transaction(number: int, blocks: Mapping[int, bytes], *, wide: bool) -> Iterator[bytes]:
    """The blocks of one transaction that writes `blocks` (number to content), and a zero block that ends the log."""
    tag = struct.Struct(">IHHI" if wide else ">IHH")  # number, checksum, flags, number's high word
    room = (BLOCK - _HEADER.size) // tag.size
    numbers = sorted(blocks)
    for first in range(0, len(numbers), room):
        part = numbers[first : first + room]
        descriptor = bytearray(BLOCK)
        _HEADER.pack_into(descriptor, 0, MAGIC, _DESCRIPTOR, number)
        contents = []
        for place, block in enumerate(part):
            content = blocks[block]
            flags = _SAME_UUID | (_LAST if place == len(part) - 1 else 0)
            if content.startswith(MAGIC.to_bytes(4, "big")):
                flags, content = flags | _ESCAPED, bytes(4) + content[4:]
            high = (block >> 32,) if wide else ()
            tag.pack_into(descriptor, _HEADER.size + place * tag.size, block & 0xFFFFFFFF, 0, flags, *high)
            contents.append(content)
        yield bytes(descriptor)
        yield from contents
    commit = bytearray(BLOCK)
    _HEADER.pack_into(commit, 0, MAGIC, _COMMIT, number)
    struct.pack_into(">Q", commit, 0x30, int(time.time()))
    yield bytes(commit)
    yield bytes(BLOCK)

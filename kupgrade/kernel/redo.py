"""What a snapshot holds becomes its origin's content, whole or not at all, whenever the power is cut.

The new content is first written to the origin's own ext4 journal, as one transaction, where it is of no meaning to
anybody; then the journal's superblock is made to lead to it, by the write of one sector; then everything is written
where it belongs, and the journal is empty again. Whoever mounts the file system in between replays it. Both states of
the file system, the old and the new, have to be clean: frozen (FIFREEZE), or unmounted.

Before `commit` the one who has the old state mounted may go on with it: it has an empty journal, writes over ours from
wherever it stands, and the number of our transaction never follows one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from kupgrade.errors import BadInputError
from kupgrade.kernel import jbd2
from kupgrade.kernel.ext4 import BLOCK, Super
from kupgrade.kernel.jbd2 import JournalSuper

RUN = 256  # blocks at most in one write


class Disk(Protocol):
    """The origin. A block is written whole; the order of writes is only that of flushes."""

    def read(self, block: int) -> bytes:
        """One block."""

    def write(self, block: int, content: bytes) -> None:
        """One block or several that follow each other."""

    def flush(self) -> None:
        """Everything written is on stable storage."""

    def close(self) -> None:
        """Nothing more is done with it."""


@dataclass(frozen=True, slots=True)
class Redo:
    """Made by `plan`; then `log`, `commit`, `apply`, in this order."""

    disk: Disk
    journal: tuple[int, ...]  # blocks of the disk
    old: Super
    new: Super
    old_journal: JournalSuper
    new_journal: JournalSuper
    home: Mapping[int, bytes]  # what belongs neither to the journal nor into block 0

    def log(self) -> None:
        """The transaction; not valid yet."""
        number, place = self.old_journal.transaction, self.old_journal.log.start
        content = {**self.home, 0: self.new.recovering().block}
        written = enumerate(jbd2.transaction(number, content, wide=self.old.wide), place)
        self._write((self.journal[at], block) for at, block in written)
        self.disk.flush()

    def commit(self) -> None:
        """From here on a mount brings the new state, and nothing else. Nobody may go on with the old one any more."""
        self.disk.write(0, self.old.recovering().block)  # an empty journal is to be replayed: as in any mounted one
        self.disk.flush()
        self.disk.write(self.journal[0], self.old_journal.leading(self.old.wide).block)
        self.disk.flush()

    def apply(self) -> None:
        """Everything where it belongs; then the journal is not needed any more, and empty again.

        Block 0 among it: with an empty journal the old state's list of orphans would be taken for the new one's.
        """
        self._write(iter(sorted({**self.home, 0: self.new.recovering().block}.items())))
        self.disk.flush()
        self.disk.write(self.journal[0], self.new_journal.block)
        self.disk.flush()
        self.disk.write(0, self.new.block)
        self.disk.flush()

    def _write(self, blocks: Iterator[tuple[int, bytes]]) -> None:
        first, run = 0, list[bytes]()
        for block, content in blocks:
            if run and (block != first + len(run) or len(run) == RUN):
                self.disk.write(first, b"".join(run))
                run = []
            if not run:
                first = block
            run.append(content)
        if run:
            self.disk.write(first, b"".join(run))


def plan(disk: Disk, changed: Mapping[int, bytes]) -> Redo:
    """`changed`: the new content of every block that differs. Raises BadInputError where this cannot be done."""

    def read_new(block: int) -> bytes:
        return changed.get(block) or disk.read(block)

    old, new = Super.of(disk.read(0)), Super.of(read_new(0))
    journal = old.journal_map(disk.read)
    if old.needs_recovery or new.needs_recovery or old.wide is not new.wide:
        raise BadInputError("A state of the file system is not clean", "its journal holds something")
    if new.journal_map(read_new) != journal:
        raise BadInputError("The journal is not where it was")
    old_journal, new_journal = JournalSuper.of(disk.read(journal[0])), JournalSuper.of(read_new(journal[0]))
    if not (old_journal.empty and new_journal.empty):
        raise BadInputError("The journal is not empty")
    within = {*journal, 0}
    if any(len(content) != BLOCK for content in changed.values()):
        raise BadInputError("A block is not whole")
    home = {block: content for block, content in changed.items() if block not in within}
    needed = sum(1 for _ in jbd2.transaction(1, {**home, 0: new.block}, wide=old.wide))
    if old_journal.log.stop > len(journal) or needed > len(old_journal.log):
        raise BadInputError("The journal is too small", f"{needed} blocks of {len(old_journal.log)} are needed")
    return Redo(disk, journal, old, new, old_journal, new_journal, home)

"""Whenever the power is cut while a snapshot is written home, the file system is the old one or the new one, whole.

Judged by e2fsck, which replays journals by code of its own.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.kernel import jbd2, redo, snapshot_store
from kupgrade.kernel.ext4 import BLOCK, SUPER, Super, crc32c
from kupgrade.kernel.jbd2 import JournalSuper

MAKE = shutil.which("mkfs.ext4")
pytestmark = pytest.mark.skipif(MAKE is None or shutil.which("e2fsck") is None, reason="no e2fsprogs")
SIZE = 24 << 20
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # what is cut off and judged is the image, not a disk
KINDS = {"64bit": "64bit,metadata_csum", "narrow": "^64bit,^metadata_csum", "old": "^64bit,metadata_csum,^huge_file"}


class Cut(Exception):
    """The power is gone."""


class Memory:
    """A disk that loses what was not flushed: of that, an arbitrary part is there."""

    def __init__(self, content: bytes, survives: random.Random | None = None, writes: int | None = None) -> None:
        self.stable, self.loose = bytearray(content), list[tuple[int, bytes]]()
        self.survives, self.left, self.made = survives, writes, 0

    def read(self, block: int) -> bytes:
        now = bytearray(self.stable[block * BLOCK : (block + 1) * BLOCK])
        for at, content in self.loose:
            if at == block:
                now[:] = content
        return bytes(now)

    def write(self, block: int, content: bytes) -> None:
        for number in range(len(content) // BLOCK):
            self.step()
            self.loose.append((block + number, content[number * BLOCK : (number + 1) * BLOCK]))

    def flush(self) -> None:
        self.step()
        for at, content in self.loose:
            self.stable[at * BLOCK : (at + 1) * BLOCK] = content
        self.loose.clear()

    def close(self) -> None:
        pass

    def step(self) -> None:
        self.made += 1
        if self.left is not None and self.made > self.left:
            assert self.survives is not None
            self.loose = [each for each in self.loose if self.survives.random() < 0.5]
            self.left = None
            self.flush()
            raise Cut


def run(*argv: str, fine: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode in fine, done.stdout + done.stderr
    return done.stdout


@functools.cache
def states(kind: str) -> tuple[bytes, bytes]:
    """A file system, and what it is after files were written and removed; one block looks like the journal's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, tree = folder / "image", folder / "tree"
        tree.mkdir()
        for number in range(40):
            (tree / f"file{number}").write_bytes(random.Random(number).randbytes(9000))
        run(str(MAKE), "-q", "-b", "4096", "-J", "size=4", "-O", KINDS[kind], "-d", str(tree), str(image), "24M")
        old = image.read_bytes()
        (folder / "new").write_bytes(jbd2.MAGIC.to_bytes(4, "big") * 2048 + random.Random(7).randbytes(1_600_000))
        commands = [f"write {folder / 'new'} new", *(f"rm file{number}" for number in range(0, 40, 3)), "mkdir d"]
        (folder / "commands").write_text("\n".join(commands))
        run("debugfs", "-w", "-f", str(folder / "commands"), str(image))
        run("e2fsck", "-fn", str(image))
        return old, image.read_bytes()


def changed(old: bytes, new: bytes) -> dict[int, bytes]:
    one, other = memoryview(old), memoryview(new)
    many = [at for at in range(0, SIZE, 64 * BLOCK) if one[at : at + 64 * BLOCK] != other[at : at + 64 * BLOCK]]
    blocks = (at for start in many for at in range(start, min(start + 64 * BLOCK, SIZE), BLOCK))
    return {at // BLOCK: new[at : at + BLOCK] for at in blocks if one[at : at + BLOCK] != other[at : at + BLOCK]}


def after_mount(content: bytes | bytearray) -> bytes:
    """What is there when the journal was replayed: no damage, and no word of it any more."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        image = Path(name) / "image"
        image.write_bytes(content)
        run("e2fsck", "-E", "journal_only", "-p", str(image), fine=(0, 1))
        run("e2fsck", "-fn", str(image))
        return image.read_bytes()


def same(one: bytes, other: bytes) -> bool:
    """Alike but for the journal and for times in the superblock."""
    journal = {*Super.of(one[:BLOCK]).journal_map(lambda block: one[block * BLOCK : (block + 1) * BLOCK]), 0}
    return not {*changed(one, other)} - journal


def finish(disk: Memory, kind: str) -> None:
    found = redo.plan(disk, changes(kind))
    found.log()
    found.commit()
    found.apply()


@functools.cache
def changes(kind: str) -> dict[int, bytes]:
    """Between the two states."""
    return changed(*states(kind))


@functools.cache
def steps(kind: str) -> tuple[int, int]:
    """Of the whole, and of the log."""
    disk = Memory(states(kind)[0])
    found = redo.plan(disk, changes(kind))
    found.log()
    log = disk.made
    found.commit()
    found.apply()
    return disk.made, log


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_cut_the_new_state_is_there(kind: str) -> None:
    """Block for block, with nothing to be replayed."""
    old, new = states(kind)
    disk = Memory(old)
    finish(disk, kind)
    assert same(bytes(disk.stable), new)
    assert bytes(disk.stable[:BLOCK]) == new[:BLOCK]
    assert after_mount(disk.stable) == bytes(disk.stable)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_leaves_one_of_the_two_states(kind: str, data: st.DataObject) -> None:
    """At every write, whatever part of what was not flushed is there: never something in between."""
    old, new = states(kind)
    total, log = steps(kind)
    late = data.draw(st.booleans())
    cut = data.draw(st.integers(total - 12, total - 1) if late else st.integers(0, total - 1))
    disk = Memory(old, random.Random(data.draw(st.integers(0, 1 << 20))), cut)
    with pytest.raises(Cut):
        finish(disk, kind)
    found = after_mount(disk.stable)
    if cut < log:
        assert same(found, old)
    elif cut > log + 4:
        assert same(found, new)
    else:
        assert same(found, old) or same(found, new)


@pytest.mark.parametrize("kind", KINDS)
def test_around_the_commit_it_is_the_old_state_or_the_new_one(kind: str) -> None:
    """Each step of the commit, with nothing or everything of what was not flushed."""
    old, new = states(kind)
    seen = set()
    _, log = steps(kind)
    for cut in range(log - 1, log + 6):
        for survives in (0.0, 0.99):
            dice = random.Random()
            dice.random = lambda survives=survives: survives  # type: ignore[method-assign,misc]
            disk = Memory(old, dice, cut)
            with pytest.raises(Cut):
                finish(disk, kind)
            found = after_mount(disk.stable)
            assert same(found, old) or same(found, new)
            seen.add(same(found, new))
    assert seen == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_the_superblock_belongs_to_the_blocks_it_speaks_of(kind: str, tmp_path: Path) -> None:
    """Orphans, errors and features of the one state are not looked for in the other, wherever the commit is cut."""
    old, new = states(kind)
    image = tmp_path / "image"
    image.write_bytes(new)
    run("debugfs", "-w", "-R", "set_super_value volume_name new", str(image))
    new = image.read_bytes()
    changes, name = changed(old, new), slice(SUPER + 0x78, SUPER + 0x88)
    whole = Memory(old)
    for disk in (whole, *(Memory(old, random.Random(7), cut) for cut in range(steps(kind)[0] - 6, steps(kind)[0]))):
        try:
            found = redo.plan(disk, changes)
            found.log()
            found.commit()
            found.apply()
        except Cut:
            assert disk is not whole
        content = after_mount(disk.stable)
        assert same(content, new)
        assert content[name] == new[name]


def test_before_the_commit_the_old_state_may_go_on() -> None:
    """A log that was given up is not replayed, even when the file system's own word says that there is something."""
    old, new = states("64bit")
    disk = Memory(old)
    redo.plan(disk, changed(old, new)).log()
    content = bytearray(disk.stable)
    content[:BLOCK] = Super.of(bytes(content[:BLOCK])).recovering().block
    assert same(after_mount(content), old)


@pytest.mark.parametrize("what", ["recover", "journal", "big", "none", "moved"])
def test_what_cannot_be_done_safely_is_refused(what: str) -> None:
    """Before anything is written."""
    old, new = states("64bit")
    content, blocks = bytearray(old), changed(old, new)
    journal = Super.of(old[:BLOCK]).journal_map(lambda block: old[block * BLOCK : (block + 1) * BLOCK])
    match what:
        case "recover":
            blocks[0] = Super.of(new[:BLOCK]).recovering().block
        case "journal":
            block = JournalSuper.of(old[journal[0] * BLOCK : (journal[0] + 1) * BLOCK])
            blocks[journal[0]] = block.leading(True).block
        case "big":
            blocks.update({number: bytes(BLOCK) for number in range(4000, 5500)})
        case "none":
            content[SUPER + 0x38] = 0
        case "moved":
            table = int.from_bytes(old[BLOCK + 8 : BLOCK + 12], "little")
            inode = bytearray(old[table * BLOCK : (table + 1) * BLOCK])
            size = int.from_bytes(old[SUPER + 0x58 : SUPER + 0x5A], "little")
            inode[7 * size + 0x28 + 12 + 8] ^= 1
            blocks[table] = bytes(inode)
    disk = Memory(bytes(content))
    with pytest.raises(BadInputError):
        redo.plan(disk, blocks)
    assert disk.made == 0


def test_the_checksum_is_ext4s() -> None:
    """The superblock that mkfs wrote has it; and the standard's own example, inverted."""
    old, _ = states("64bit")
    assert crc32c(old[SUPER : SUPER + 0x3FC]) == int.from_bytes(old[SUPER + 0x3FC : SUPER + 0x400], "little")
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


def test_a_store_is_read_across_its_areas() -> None:
    """256 exceptions an area; the first that is zero ends it."""
    size = snapshot_store.CHUNK_SIZE
    store = bytearray(size * 600)
    store[:16] = b"".join(value.to_bytes(4, "little") for value in (0x70416E53, 1, 1, 8))
    wanted = []
    for number in range(300):
        area, place = divmod(number, 256)
        new = 1 + area * 257 + 1 + place
        wanted.append((number * 7, new))
        at = (1 + area * 257) * size + place * 16
        store[at : at + 16] = (number * 7).to_bytes(8, "little") + new.to_bytes(8, "little")
    assert list(snapshot_store.exceptions(memoryview(store))) == wanted
    store[4] = 0
    with pytest.raises(BadInputError, match="header"):
        list(snapshot_store.exceptions(memoryview(store)))

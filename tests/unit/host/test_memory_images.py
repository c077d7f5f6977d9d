"""Pagemaps in chains of rounds: where each page is, what criu is told to leave out, and damage."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import memory_images
from kupgrade.host.memory_images import LEAST, PAGE, Extent, memory, processes

PID = 77
HEAP = 0x10_0000_0000
HEAP_END = HEAP + 2 * LEAST
STACK = 0x20_0000_0000
CODE = 0x5000_0000
PARENT, LAZY, PRESENT = 1, 2, 4
PLAIN, FILE, GROWS = (0x201, 0x22), (0x41, 0x02), (0x201, 0x122)  # status and flags of mappings


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(**numbers: int | bytes) -> bytes:
    """Fields by f1=..., f2=...: numbers, or bytes that are messages themselves."""
    out = b""
    for name, value in numbers.items():
        field = int(name[1:])
        if isinstance(value, bytes):
            out += varint(field << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(field << 3) + varint(value)
    return out


def image(path: Path, magic: int, *records: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(struct.pack("<I", len(each)) + each for each in records)
    path.write_bytes(struct.pack("<II", 0x54564319, magic) + content)


def pagemap(directory: Path, *entries: tuple[int, int, int], pages: int = 1) -> None:
    """Entries: address, pages, flags, as criu 4.2 writes them; and a file with the pages."""
    rows = (message(f1=at, f2=0, f4=flags, f5=count) for at, count, flags in entries)
    image(directory / f"pagemap-{PID}.img", 0x56084025, message(f1=pages), *rows)
    size = sum(count for _, count, flags in entries if flags & PRESENT)
    (directory / f"pages-{pages}.img").write_bytes(b"".join(bytes([n % 251]) * PAGE for n in range(size)))


def mappings(directory: Path, *given: tuple[int, int, tuple[int, int]], madv: int = 0) -> None:
    """Start, end, (status, flags); the bits of madvise(2) are those of all."""
    vmas = b"".join(
        varint(14 << 3 | 2) + varint(len(each)) + each
        for each in (message(f1=a, f2=b, f3=0, f4=0, f5=3, f6=kind[1], f7=kind[0], f9=madv) for a, b, kind in given)
    )
    image(directory / f"mm-{PID}.img", 0x57492820, message(f1=1) + vmas)


@pytest.fixture
def rounds(tmp_path: Path) -> Path:
    """Two rounds and a final dump; code, a heap and a stack."""
    final, second, first = tmp_path / "final", tmp_path / "pre-2", tmp_path / "pre-1"
    pagemap(first, (HEAP, 100, LAZY | PRESENT), (STACK, 2, LAZY | PRESENT), pages=3)
    pagemap(second, (HEAP, 40, PARENT), (HEAP + 40 * PAGE, 20, LAZY | PRESENT), (HEAP + 60 * PAGE, 40, PARENT))
    pagemap(
        final,
        (CODE, 3, PRESENT),
        (HEAP, 50, PARENT),
        (HEAP + 50 * PAGE, 5, LAZY | PRESENT),
        (HEAP + 55 * PAGE, 45, PARENT),
        (HEAP + 300 * PAGE, 1, LAZY | PRESENT),
        (STACK, 2, LAZY | PRESENT),
    )
    mappings(
        final, (CODE, CODE + 3 * PAGE, FILE), (HEAP, HEAP_END, PLAIN), (STACK, STACK + 4 * LEAST, GROWS),
        (STACK + 8 * LEAST, STACK + 8 * LEAST + PAGE, PLAIN),
    )  # fmt: skip
    (final / "parent").symlink_to("../pre-2")
    (second / "parent").symlink_to("../pre-1")
    return final


def test_each_page_is_taken_from_the_newest_round_that_has_it(rounds: Path) -> None:
    """With its place in that round's file; a page nobody has is in no extent."""
    second, first = rounds / "parent/pages-1.img", rounds / "parent/parent/pages-3.img"
    found = memory(rounds, PID)
    assert processes(rounds) == (PID,)
    assert found.regions == ((HEAP, HEAP_END),)
    assert found.extents == (
        Extent(HEAP, HEAP + 40 * PAGE, first, 0),
        Extent(HEAP + 40 * PAGE, HEAP + 50 * PAGE, second, 0),
        Extent(HEAP + 50 * PAGE, HEAP + 55 * PAGE, rounds / "pages-1.img", 3 * PAGE),
        Extent(HEAP + 55 * PAGE, HEAP + 60 * PAGE, second, 15 * PAGE),
        Extent(HEAP + 60 * PAGE, HEAP + 100 * PAGE, first, 60 * PAGE),
        Extent(HEAP + 300 * PAGE, HEAP + 301 * PAGE, rounds / "pages-1.img", 8 * PAGE),
    )
    assert found.size == 101 * PAGE


@pytest.mark.parametrize(("advice", "filled"), [(14, True), (18, False)])
def test_what_a_fork_wipes_is_copied(advice: int, filled: bool, rounds: Path) -> None:
    """A process that is forked while memory is filled would find its parent's keys there (MADV_WIPEONFORK)."""
    mappings(rounds, (HEAP, HEAP_END, PLAIN), madv=1 << advice)
    assert memory(rounds, PID).regions == (((HEAP, HEAP_END),) if filled else ())


def test_the_view_marks_what_is_filled_and_nothing_else(rounds: Path, tmp_path: Path) -> None:
    """criu copies code and stack as ever, from where they are; all other images are links."""
    view = tmp_path / "view"
    for _ in range(2):
        memory_images.make_view(rounds, view, [memory(rounds, PID)])
    number, entries = memory_images._pagemap(view / f"pagemap-{PID}.img")
    assert number == 1
    assert [(each.start, each.pages, each.flags) for each in entries] == [
        (CODE, 3, PRESENT),
        (HEAP, 50, PARENT | LAZY),
        (HEAP + 50 * PAGE, 5, LAZY | PRESENT),
        (HEAP + 55 * PAGE, 45, PARENT | LAZY),
        (HEAP + 300 * PAGE, 1, LAZY | PRESENT),
        (STACK, 2, PRESENT),
    ]
    assert (view / "pages-1.img").readlink() == rounds / "pages-1.img"
    assert sorted(path.name for path in view.iterdir()) == sorted(path.name for path in rounds.iterdir())


def test_an_entry_over_two_mappings_is_divided(tmp_path: Path) -> None:
    """Pages of one that is filled and of one that is not, dumped in one run."""
    edge = HEAP + 256 * PAGE
    pagemap(tmp_path, (edge - 4 * PAGE, 8, LAZY | PRESENT))
    mappings(tmp_path, (HEAP, edge, PLAIN), (edge, edge + 16 * PAGE, PLAIN))
    found = memory(tmp_path, PID)
    assert found.extents == (Extent(edge - 4 * PAGE, edge, tmp_path / "pages-1.img", 0),)
    memory_images.make_view(tmp_path, tmp_path / "view", [found])
    _, entries = memory_images._pagemap(tmp_path / "view" / f"pagemap-{PID}.img")
    assert [(each.pages, each.flags) for each in entries] == [(4, LAZY | PRESENT), (4, PRESENT)]


@pytest.mark.parametrize(
    ("kind", "filled"),
    [
        (PLAIN, True),
        ((0x221, 0x22), True),  # the heap
        ((0x201, 0x2022), False),  # locked: criu does not register it
        ((0x201, 0x40022), False),  # huge pages
        ((0x101, 0x21), False),  # shared
        ((0x1201, 0x22), False),  # vvar
        ((0x209, 0x22), False),  # vdso
        (GROWS, False),
        (FILE, False),
    ],
)
def test_only_plain_private_anonymous_memory_is_filled(tmp_path: Path, kind: tuple[int, int], filled: bool) -> None:
    """Everything else is restored by criu."""
    pagemap(tmp_path, (HEAP, 4, PRESENT | LAZY))
    mappings(tmp_path, (HEAP, HEAP_END, kind))
    assert bool(memory(tmp_path, PID).regions) == filled


def spoil(rounds: Path, what: str) -> None:
    path = rounds / f"pagemap-{PID}.img"
    match what:
        case "cut off":
            path.write_bytes(path.read_bytes()[:-3])
        case "empty":
            path.write_bytes(b"")
        case "another kind":
            path.write_bytes((rounds / f"mm-{PID}.img").read_bytes())
        case "without its parent":
            (rounds / "parent").unlink()
        case "a parent that lacks pages":
            pagemap((rounds / "parent").resolve(), (HEAP, 40, PRESENT))
        case "not in order":
            pagemap(rounds, (STACK, 1, PRESENT), (HEAP, 1, PRESENT))
        case "no end":
            image(path, 0x56084025, message(f1=1), b"\x08" + b"\xff" * 12)
        case "a wire type":
            image(path, 0x56084025, message(f1=1), b"\x0f\x00")


@pytest.mark.parametrize(
    "what",
    [
        *("cut off", "empty", "another kind", "without its parent", "a parent that lacks pages", "not in order"),
        *("no end", "a wire type"),
    ],
)
def test_damage_is_told_and_never_taken_for_zeros(rounds: Path, what: str) -> None:
    """A page that is said to be somewhere is there, or nothing is restored."""
    spoil(rounds, what)
    with pytest.raises(BadInputError):
        memory(rounds, PID)

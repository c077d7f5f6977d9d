"""Files in the shared window: what is read is what was written, or it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel import window_files
from kupgrade.kernel.window_files import FileWriter, WindowFile, content, extract, read_table

CAPACITY = 8


def area(size: int = 64 << 10) -> memoryview:
    return memoryview(bytearray(b"\xaa" * size))


names = st.from_regex(r"\A[a-z0-9]{1,8}(/[a-z0-9.-]{1,8})?\Z").filter(
    lambda name: "/." not in name and "/-" not in name
)


@given(st.dictionaries(names, st.binary(max_size=5000), max_size=CAPACITY))
@settings(max_examples=40)
def test_files_round_trip(files: dict[str, bytes]) -> None:
    """Names, contents and order."""
    buffer = area()
    writer = FileWriter(buffer, CAPACITY)
    for name, data in files.items():
        writer.add(name, data)
    writer.publish()
    table = read_table(buffer)
    assert table == writer.files
    assert [(each.name, bytes(content(buffer, each))) for each in table] == list(files.items())
    assert all(each.offset % 4096 == 0 for each in table)


def test_nothing_is_seen_before_it_is_published() -> None:
    """Readers find the last table that was published, the empty one at first."""
    buffer = area()
    writer = FileWriter(buffer, CAPACITY)
    writer.add("core-1.img", b"one")
    assert read_table(buffer) == ()
    writer.publish()
    writer.add("core-2.img", b"two")
    assert [each.name for each in read_table(buffer)] == ["core-1.img"]
    writer.publish()
    assert len(read_table(buffer)) == 2


def test_files_go_from_disk_to_disk(tmp_path: Path) -> None:
    """Through the window, into folders that are made, readable by the owner only."""
    source = tmp_path / "pages-1.img"
    source.write_bytes(bytes(range(256)) * 40)
    buffer = area()
    writer = FileWriter(buffer, CAPACITY)
    writer.add_file("0/pages-1.img", source)
    writer.add("empty", b"")
    writer.publish()
    extract(buffer, read_table(buffer), tmp_path / "new")
    written = tmp_path / "new/0/pages-1.img"
    assert written.read_bytes() == source.read_bytes()
    assert written.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new/empty").read_bytes() == b""


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """With its path; nothing is added."""
    writer = FileWriter(area(), CAPACITY)
    with pytest.raises(KernelError):
        writer.add_file("x", tmp_path / "missing")
    assert writer.files == ()


def test_a_file_that_shrinks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it is not the file."""
    path = tmp_path / "shrinks"
    path.write_bytes(b"12345678")
    monkeypatch.setattr("os.readv", lambda *_: 0)
    writer = FileWriter(area(), CAPACITY)
    with pytest.raises(BadInputError, match="shorter"):
        writer.add_file("x", path)
    assert writer.files == ()


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """What it points to stays as it is."""
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").symlink_to(target)
    buffer = area()
    writer = FileWriter(buffer, CAPACITY)
    writer.add("x", b"new")
    writer.publish()
    with pytest.raises(KernelError):
        extract(buffer, read_table(buffer), tmp_path / "out")
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../b", "a//b", ".hidden", "a/.b", "a\0b", "a" * 225, "ä"]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    """When they are written, and when somebody else wrote them."""
    with pytest.raises(BadInputError):
        FileWriter(area(), CAPACITY).add(name, b"")
    with pytest.raises(BadInputError):
        extract(memoryview(b""), [WindowFile(name, 0, 0, 0)], Path("/nowhere"))


def test_what_does_not_fit_is_refused() -> None:
    """Too long, too many, twice, and an area that is too small for its own table."""
    writer = FileWriter(area(), 2)
    with pytest.raises(BadInputError, match="are left"):
        writer.add("big", bytes(writer.room + 1))
    writer.add("a", bytes(writer.room - 4096))
    with pytest.raises(BadInputError, match="already"):
        writer.add("a", b"")
    writer.add("b", bytes(writer.room))
    assert writer.room == 0
    with pytest.raises(BadInputError, match="too many"):
        writer.add("c", b"")
    with pytest.raises(BadInputError, match="too small"):
        FileWriter(area(4096), 1000)


@given(st.integers(0, 47 + 3 * 248 - 1), st.integers(1, 255))
def test_every_damaged_byte_of_the_table_is_noticed(at: int, change: int) -> None:
    """By mark, size or checksum."""
    buffer = area()
    writer = FileWriter(buffer, CAPACITY)
    for number in range(3):
        writer.add(f"f{number}", b"content")
    writer.publish()
    if at >= window_files._HEAD.size + 3 * window_files._ENTRY.size:
        return  # behind the table
    buffer[at] ^= change
    with pytest.raises(BadInputError):
        read_table(buffer)


@pytest.mark.parametrize(("offset", "length"), [(0, 4), (4096, (64 << 10) - 4095), (1 << 40, 1)])
def test_a_file_outside_of_the_contents_is_refused(offset: int, length: int) -> None:
    """Also when its table is whole: somebody else's release may have written it."""
    buffer = area()
    writer = FileWriter(buffer, CAPACITY)
    writer._files.append(WindowFile("x", offset, length, 0))
    writer.publish()
    with pytest.raises(BadInputError, match="outside"):
        read_table(buffer)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_no_table(data: bytes) -> None:
    """No input makes the reader fail in another way."""
    with pytest.raises(BadInputError):
        read_table(memoryview(data))


@given(st.integers(0, 4999), st.integers(1, 255))
@settings(max_examples=30)
def test_damaged_contents_are_refused(at: int, change: int) -> None:
    """Before a byte of them is written."""
    buffer = area()
    writer = FileWriter(buffer, CAPACITY)
    added = writer.add("pages-1.img", bytes(5000))
    buffer[added.offset + at] ^= change
    with pytest.raises(BadInputError, match="damaged"):
        content(buffer, added)


def test_wiping_leaves_nothing() -> None:
    """Neither contents nor table; the writer can begin anew."""
    buffer = area()
    writer = FileWriter(buffer, CAPACITY)
    added = writer.add("core-1.img", b"secret" * 1000)
    writer.publish()
    writer.wipe()
    assert not any(buffer[: added.offset + 8192])
    with pytest.raises(BadInputError, match="no files"):
        read_table(buffer)
    writer.add("next", b"x")
    writer.publish()
    assert [each.name for each in read_table(buffer)] == ["next"]


def test_without_a_checksum_contents_are_for_others_to_compare() -> None:
    """They come as they are; that they have none survives the table."""
    buffer = area()
    writer = FileWriter(buffer, CAPACITY, checked=False)
    added = writer.add("pages-1.img", bytes(5000))
    writer.publish()
    buffer[added.offset] = 7
    (found,) = read_table(buffer)
    assert found.crc is None
    assert bytes(content(buffer, found)) == b"\7" + bytes(4999)

"""The journal on a real file: what a power cut leaves is cut off, damage is never repaired, one writer only."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from kupgrade import journal as module
from kupgrade.errors import BadInputError, ExitCode, NeedsHumanError, NotNowError
from kupgrade.journal import FORMAT, Journal, decode_line, encode_line, parse, read
from kupgrade.model.codec import encode
from kupgrade.model.record import Record, RecordKind


def record(seq: int, kind: RecordKind = RecordKind.NOTE, **data: Any) -> Record:
    return Record(seq, kind, "boot-a", 1, 1.5, 2.5, data=data)


def lines(count: int = 3) -> list[bytes]:
    """Header and `count` records."""
    header = encode_line({"format": FORMAT})
    return [header, *(encode_line(encode(record(n, text="}" * n))) for n in range(1, count + 1))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def written(path: Path, count: int = 3) -> Journal:
    journal = Journal.create(path)
    for seq in range(1, count + 1):
        journal.append(record(seq))
    return journal


def test_what_was_appended_is_read_back(path: Path) -> None:
    """Records survive closing and opening, in order, with their numbers."""
    written(path).close()
    journal = Journal.open(path)
    assert [r.seq for r in journal.records] == [1, 2, 3]
    assert journal.next_seq == 4
    journal.append(record(4))
    journal.close()
    assert read(path).records[-1].seq == 4


def test_an_append_is_synced_before_it_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every append ends in an fsync after its last write."""
    journal = written(path, 0)
    calls: list[str] = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: (calls.append("write"), write(fd, data))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), sync(fd))[1])
    journal.append(record(1))
    assert calls == ["write", "fsync"]
    journal.append(record(2), durable=False)
    assert calls == ["write", "fsync", "write"]
    journal.sync()
    assert calls == ["write", "fsync", "write", "fsync"]
    journal.close()


def test_a_tail_torn_at_any_byte_is_cut_off(path: Path) -> None:
    """Wherever the last append was cut short, all before it counts and the next append fits."""
    whole = lines()
    for cut in range(len(whole[-1])):
        path.write_bytes(b"".join(whole[:-1]) + whole[-1][:cut])
        path.chmod(0o600)
        journal = Journal.open(path)
        assert [r.seq for r in journal.records] == [1, 2]
        journal.append(record(3))
        journal.close()
        assert [r.seq for r in parse(path.read_bytes()).records] == [1, 2, 3]


def test_a_torn_header_is_an_empty_journal(path: Path) -> None:
    """Cut off while it was being created, the journal begins anew."""
    header = lines(0)[0]
    for cut in range(len(header)):
        path.write_bytes(header[:cut])
        path.chmod(0o600)
        journal = Journal.open(path)
        assert journal.records == ()
        journal.close()
        assert path.read_bytes() == header


def test_a_tail_of_zeros_is_cut_off() -> None:
    """A file system that had made room, but not written yet, leaves zeros."""
    content = parse(b"".join(lines()) + bytes(4096))
    assert content.torn
    assert len(content.records) == 3


def test_a_flipped_bit_before_the_last_line_is_damage() -> None:
    """Every single flipped bit in an acknowledged and followed line is noticed and left to a person."""
    whole = lines()
    data, last = b"".join(whole), len(b"".join(whole[:-1]))
    for at in range(last):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(NeedsHumanError):
                parse(bytes(flipped))


def test_a_flipped_bit_in_the_last_line_is_never_believed() -> None:
    """In the last line a flipped bit is a torn append or damage, but never a record."""
    whole = lines()
    data, last = b"".join(whole), len(b"".join(whole[:-1]))
    for at in range(last, len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            try:
                content = parse(bytes(flipped))
            except NeedsHumanError:
                continue
            assert content.torn
            assert [r.seq for r in content.records] == [1, 2]
            assert content.valid_bytes == last


@pytest.mark.parametrize("order", [[1, 3], [2, 1], [1, 1, 2], [0, 1]])
def test_numbers_out_of_sequence_are_damage(order: list[int]) -> None:
    """A missing, repeated or swapped record is damage, however valid each line is."""
    data = encode_line({"format": FORMAT}) + b"".join(encode_line(encode(record(n))) for n in order)
    with pytest.raises(NeedsHumanError, match="line"):
        parse(data)


@pytest.mark.parametrize("header", [{"format": "kupgrade.journal/2"}, {"other": 1}, [1], "text", None])
def test_another_format_is_refused(header: object) -> None:
    """A journal of another format names the one that is known."""
    with pytest.raises(BadInputError) as caught:
        parse(encode_line(header) + encode_line(encode(record(1))))
    assert FORMAT in str(caught.value)


def test_a_record_that_is_not_one_is_refused() -> None:
    """A valid line with other contents than a record's is refused with its place."""
    for value in ({"seq": 1}, {**encode(record(1)), "kind": "dance"}, {**encode(record(1)), "more": 1}):
        with pytest.raises(BadInputError, match="line 2"):
            parse(encode_line({"format": FORMAT}) + encode_line(value))


@pytest.mark.parametrize("text", [b"00000000", b"", b"\n", b"zzzzzzzz {}\n", b"+0000001 {}\n", b"A3D95170 {}\n"])
def test_lines_that_are_none_raise_value_errors(text: bytes) -> None:
    """Only eight lower-case hexadecimal digits that match count as a checksum."""
    with pytest.raises(ValueError):
        decode_line(text)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
def test_a_journal_others_can_write_is_refused(path: Path, mode: int) -> None:
    """Who can write the journal decides what runs in the next kernel."""
    written(path).close()
    path.chmod(mode)
    for opener in (read, Journal.open):
        with pytest.raises(BadInputError, match="written by others"):
            opener(path)


def test_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    """A symbolic link in the journal's place is not followed."""
    written(path).close()
    link = tmp_path / "link"
    link.symlink_to(path)
    for opener in (read, Journal.open):
        with pytest.raises(BadInputError, match="regular file"):
            opener(link)


def test_another_owner_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that belongs to somebody else is not believed."""
    written(path).close()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(BadInputError, match="owner"):
        read(path)


def test_a_new_journal_is_private_and_never_replaces_one(path: Path) -> None:
    """Made 0600 whatever the umask; an existing file is kept."""
    before = os.umask(0)
    try:
        written(path).close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        Journal.create(path)
    assert len(read(path).records) == 3


def test_a_second_opener_is_told_to_come_later(path: Path) -> None:
    """One writer: the second one gets exit status 75, and reading needs no lock."""
    journal = written(path)
    with pytest.raises(NotNowError) as caught:
        Journal.open(path)
    assert caught.value.code is ExitCode.NOT_NOW
    assert len(read(path).records) == 3
    journal.close()
    Journal.open(path).close()


def test_a_killed_holder_leaves_no_lock(path: Path) -> None:
    """The lock dies with the process that held it, whatever way it ended."""
    written(path).close()
    code = (
        "import sys, time; from pathlib import Path; from kupgrade.journal import Journal;"
        " journal = Journal.open(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(NotNowError):
            Journal.open(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    Journal.open(path).close()


def test_a_child_process_does_not_inherit_the_lock(path: Path) -> None:
    """A program started meanwhile (criu, nft) does not hold the journal after we are gone."""
    journal = written(path)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        journal.close()
        Journal.open(path).close()
        child.kill()


def test_a_full_disk_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that fails is not a record, and the next one that works stands behind a whole line."""
    journal = written(path)

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_all", full)
        with pytest.raises(OSError, match="No space"):
            journal.append(record(4))
    assert journal.next_seq == 4
    journal.append(record(4))
    journal.close()
    content = parse(path.read_bytes())
    assert not content.torn
    assert [r.seq for r in content.records] == [1, 2, 3, 4]


def fsyncs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is made durable from now on: name and size."""
    calls: list[tuple[str, int]] = []
    sync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (calls.append((Path(f"/proc/self/fd/{fd}").readlink().name, os.fstat(fd).st_size)), sync(fd)),
    )
    return calls


def test_a_new_journal_is_durable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First its header, then its name."""
    calls = fsyncs(monkeypatch)
    Journal.create(path).close()
    assert [name for name, _ in calls] == [path.name, path.parent.name]
    assert calls[0][1] == path.stat().st_size > 0


def test_in_memory_nothing_is_waited_for_until_it_comes_to_a_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are written all the same; the next one that must be durable is."""
    journal = written(path, 1)
    calls = fsyncs(monkeypatch)
    journal.on_disk = False
    journal.append(record(2))
    assert calls == []
    assert [each.seq for each in read(path).records] == [1, 2]
    journal.on_disk = True
    journal.append(record(3))
    assert len(calls) == 1


def test_a_torn_tail_is_gone_from_the_disk_before_the_next_append(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut after that append could leave both."""
    whole = lines()
    path.write_bytes(b"".join(whole) + whole[-1][:-5])
    path.chmod(0o600)
    calls = fsyncs(monkeypatch)
    Journal.open(path).close()
    assert calls == [(path.name, len(b"".join(whole)))]


def room(path: Path) -> int:
    """Bytes that the file has on its disk and has not used yet."""
    return path.stat().st_blocks * 512 - path.stat().st_size


def test_room_for_what_is_to_come_is_there_before_the_disk_is_full(path: Path) -> None:
    """Images that fill the disk must not keep their failure, and the undo behind it, from being recorded."""
    journal = written(path, 2)
    assert room(path) >= module.ROOM // 2
    size = path.stat().st_size
    assert size == len(path.read_bytes()) and not read(path).torn
    journal.append(record(3, text="x" * module.ROOM))
    assert room(path) >= module.ROOM // 2
    journal.close()
    again = Journal.open(path)
    again.append(record(4))
    assert room(path) >= module.ROOM // 2
    again.append(record(5, RecordKind.FINISHED, outcome="rolled-back"))
    again.close()
    assert room(path) < 8192, "what nobody will use is given back"
    assert [each.seq for each in read(path).records] == [1, 2, 3, 4, 5]


def test_a_disk_without_that_room_is_told_before_anything_begins(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new journal does not begin without it; an open one goes on as long as it can."""

    def full(_fd: int, _start: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    written(path, 1).close()
    monkeypatch.setattr(module, "set_aside", full)
    with pytest.raises(OSError, match="No space"):
        Journal.create(path.with_name("other"))
    journal = Journal.open(path)
    journal.append(record(2))
    journal.close()
    assert len(read(path).records) == 2


def test_a_record_nested_beyond_measure_is_damage() -> None:
    """Whoever wrote it, it is told as damage and not as a fault of ours."""
    body = b"[" * 100_000
    nested = b"%08x %s\n" % (zlib.crc32(body), body)
    with pytest.raises(NeedsHumanError, match="line 2"):
        parse(lines()[0] + nested + lines()[1])

"""Files that are replaced whole: by one of several writers, on a full disk, beside what somebody else laid there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kupgrade.host import durable
from kupgrade.host.durable import write_durably


def test_a_full_disk_leaves_the_file_as_it_was_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a file nobody reads would keep the disk full."""
    path = tmp_path / "plan.json"
    write_durably(path, b"old")

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_two_that_write_at_once_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are told that it is written, and the file is what one of them wrote."""
    path = tmp_path / "automation.json"
    write_all = durable.write_all

    def interrupted(fd: int, data: bytes) -> None:
        monkeypatch.setattr(durable, "write_all", write_all)
        write_all(fd, data[:3])
        write_durably(path, b"the other's, which is longer")
        write_all(fd, data[3:])

    monkeypatch.setattr(durable, "write_all", interrupted)
    write_durably(path, b"this one's")
    assert path.read_bytes() == b"this one's"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_what_lies_under_the_temporary_name_is_not_written_to(tmp_path: Path) -> None:
    """In a directory that others can write to it may be a link to a file of root's, or a file that they hold open."""
    shadow = tmp_path / "shadow"
    shadow.write_text("root's")
    path = tmp_path / "out" / "plan.json"
    path.parent.mkdir()
    for name in (".plan.json.new", "plan.json.new"):
        os.link(shadow, path.with_name(name))
    write_durably(path, b"a plan")
    assert path.read_bytes() == b"a plan"
    assert shadow.read_text() == "root's"
    assert path.stat().st_ino != shadow.stat().st_ino

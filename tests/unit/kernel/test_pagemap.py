"""Soft-dirty bits counted from pagemap."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import pagemap, process

MAPS = """\
00001000-00004000 rw-p 00000000 00:00 0                          [heap]
00004000-00005000 r--p 00000000 00:00 0 /usr/bin/x
00005000-00007000 rw-s 00000000 00:00 0 /dev/shm/x
00007000-00008000 rw-p 00000000 00:00 0                          [vvar]
"""


def test_only_written_pages_of_private_writable_memory_count(tmp_path: Path) -> None:
    """Read-only, shared and the kernel's own mappings are left out."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "maps").write_text(MAPS)
    dirty = [0, 1, 0, 1, 1, 1, 1, 1]
    (folder / "pagemap").write_bytes(b"".join(struct.pack("<Q", bit << 55 | 1 << 63) for bit in dirty))
    assert pagemap.soft_dirty(7, tmp_path) == 2 * 4096


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_file_with_an_odd_name_is_one_mapping(tmp_path: Path, odd: str) -> None:
    """Only a newline ends a line of the kernel's, and that is escaped in names."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "maps").write_text(f"00000000-00001000 rw-p 00000000 00:00 5 /srv/a{odd}b c\n", encoding="utf-8")
    (folder / "pagemap").write_bytes(struct.pack("<Q", 1 << 55))
    assert pagemap.soft_dirty(7, tmp_path) == 4096
    (found,) = process.mappings(7, tmp_path)
    assert found.path == f"/srv/a{odd}b c"


def test_a_process_that_has_given_up_its_memory_has_no_mappings(tmp_path: Path) -> None:
    """It is ending; its maps are there, and empty."""
    (tmp_path / "proc/7").mkdir(parents=True)
    for name in ("maps", "pagemap"):
        (tmp_path / "proc/7" / name).touch()
    assert pagemap.soft_dirty(7, tmp_path) == 0
    assert process.mappings(7, tmp_path) == ()


def test_a_process_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """Never taken for one that wrote nothing."""
    with pytest.raises(KernelError):
        pagemap.soft_dirty(7, tmp_path)


def test_a_real_process_is_read() -> None:
    """This one has written to something since it began, or the kernel does not tell."""
    assert pagemap.soft_dirty(os.getpid()) >= 0

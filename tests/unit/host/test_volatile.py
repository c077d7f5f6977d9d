"""Files in memory that go with the images: what is taken, and how it is made again."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import volatile
from kupgrade.model.workload import Carried

ME = os.getuid()


@pytest.fixture
def view(tmp_path: Path) -> Path:
    """What a service sees: run-time files, a lock beside a socket, shared memory."""
    root = tmp_path / "old"
    for folder in ("run/web", "run/db", "dev/shm"):
        (root / folder).mkdir(parents=True)
    (root / "run/web.pid").write_text("812\n")
    (root / "run/web/state").write_bytes(bytes(range(256)) * 20)
    (root / "run/web/state").chmod(0o640)
    os.utime(root / "run/web/state", ns=(10**18, 10**18))
    (root / "run/web/link").symlink_to("state")
    os.mkfifo(root / "run/web/pipe", 0o620)
    (root / "run/db/lock").write_text("900\n")
    (root / "dev/shm/Segment.1").write_bytes(b"\1" * 3)
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    found = tmp_path / "images"
    found.mkdir()
    return found


ALL = (Carried("/run/web.pid"), Carried("/run/web"), Carried("/run/db", (ME,)), Carried("/dev/shm", (ME,)))


def test_what_is_carried_is_there_again(view: Path, images: Path, tmp_path: Path) -> None:
    """Contents, modes, times, links and FIFOs; and when it is done again, the same."""
    new = tmp_path / "new"
    new.mkdir()
    assert volatile.pack(view, ALL, images) == volatile.size(view, ALL) == 4 + 5120 + 4 + 3
    for _ in range(2):
        volatile.unpack(new, images)
    assert (new / "run/web.pid").read_text() == "812\n"
    state = new / "run/web/state"
    assert state.read_bytes() == (view / "run/web/state").read_bytes()
    assert stat.S_IMODE(state.stat().st_mode) == 0o640
    assert state.stat().st_mtime_ns == 10**18
    assert (new / "run/web/link").readlink() == Path("state")
    assert stat.S_ISFIFO((new / "run/web/pipe").stat().st_mode)
    assert (new / "run/db/lock").read_text() == "900\n"
    assert (new / "dev/shm/Segment.1").read_bytes() == b"\1\1\1"


def test_of_a_directory_that_others_use_only_the_own_files_are_taken(view: Path, images: Path) -> None:
    """And nothing below a directory of somebody else's."""
    other = (Carried("/dev/shm", (ME + 1,)), Carried("/run/web", (ME + 1,)))
    assert volatile.pack(view, other, images) == 0
    assert [entry.path for _, entry in volatile.found(view, other)] == ["/dev/shm", "/run/web"]


def test_what_is_not_there_is_not_carried(view: Path, images: Path, tmp_path: Path) -> None:
    """A PID file may be gone, and images of an older release hold none."""
    assert volatile.pack(view, (Carried("/run/gone.pid"), Carried("/run/gone")), images) == 0
    assert volatile.unpack(tmp_path / "new", images) == 0
    assert volatile.unpack(tmp_path / "new", tmp_path) == 0


def test_what_is_named_twice_is_carried_once(view: Path, images: Path) -> None:
    """A PID file in a run-time directory."""
    twice = (Carried("/run/web/state"), Carried("/run/web"))
    assert volatile.pack(view, twice, images) == 5120


def test_nothing_is_written_through_a_link(view: Path, images: Path, tmp_path: Path) -> None:
    """Neither in the place of a file nor of a directory."""
    new, elsewhere = tmp_path / "new", tmp_path / "elsewhere"
    (new / "run").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "victim").write_text("mine")
    (new / "run/web.pid").symlink_to(elsewhere / "victim")
    (new / "run/web").symlink_to(elsewhere)
    volatile.pack(view, ALL, images)
    with pytest.raises(BadInputError, match="is a link here"):
        volatile.unpack(new, images)
    assert (elsewhere / "victim").read_text() == "mine"
    assert not (new / "run/web.pid").is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["victim"]


def test_data_that_is_shorter_than_its_index_is_an_error(view: Path, images: Path, tmp_path: Path) -> None:
    """Half a file would be taken for a whole one."""
    volatile.pack(view, ALL, images)
    data = images / volatile.DATA
    data.write_bytes(data.read_bytes()[:-1])
    (tmp_path / "new").mkdir()
    with pytest.raises(KupgradeError, match="cannot be carried over"):
        volatile.unpack(tmp_path / "new", images)


@pytest.mark.parametrize("uids", [(), (ME,)])
@pytest.mark.parametrize("gone", ["file", "directory", "link"])
def test_what_is_removed_while_it_is_looked_at_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str, uids: tuple[int, ...]
) -> None:
    """A service that makes and removes files all the time can be planned for."""
    (tmp_path / "run/demo/directory").mkdir(parents=True)
    (tmp_path / "run/demo/directory/x").write_bytes(b"123")
    (tmp_path / "run/demo/file").write_bytes(b"12345")
    (tmp_path / "run/demo/link").symlink_to("file")
    (tmp_path / "run/demo/stays").write_bytes(b"1")
    plain = os.walk

    def walk(*args: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in plain(*args, **options):
            path = tmp_path / "run/demo" / gone
            shutil.rmtree(path) if gone == "directory" and path.exists() else path.unlink(missing_ok=True)
            yield found

    monkeypatch.setattr(os, "walk", walk)
    expected = {"file": 4, "directory": 6, "link": 9}
    assert volatile.size(tmp_path, (Carried("/run/demo", uids),)) == expected[gone]

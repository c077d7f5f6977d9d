"""Files that are not in the copy as the dump saw them."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kupgrade.host.criu_seen import SeenFile
from kupgrade.live_images.late import Taker, lay
from kupgrade.model.live_images import DumpRequest, LateFile
from kupgrade.model.workload import Carried, Store, StoreKind


@pytest.fixture
def taker(tmp_path: Path) -> Taker:
    (tmp_path / "late").mkdir()
    store = Store(StoreKind.DISK, str(tmp_path / "images"))
    since = time.time() - 100
    return Taker(DumpRequest(store, (), 0, str(tmp_path / "late"), since, ("/tmp", "/out"), 0, "", "", ""), 1 << 20)


def host(tmp_path: Path, path: str, content: str, *, old: bool = False) -> None:
    """A file of this host; `old`: not changed since the copy, as far as its times tell."""
    target = tmp_path / "view" / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)
    if old:
        os.utime(target, (1.0, 1.0))


def take(taker: Taker, tmp_path: Path, *seen: SeenFile, sandboxed: bool = False) -> tuple[list[str], tuple[str, ...]]:
    found, differs = taker.take(tmp_path / "view", seen, (Carried("/run/web"),), sandboxed=sandboxed)
    return [each.path for each in found], differs


def test_a_log_that_grew_is_cut_to_what_the_dump_saw(taker: Taker, tmp_path: Path) -> None:
    """It changed since the copy; what is in the images has its old size, and its beginning is the same."""
    host(tmp_path, "/var/log/web", "onetwothree")
    found, differs = taker.take(tmp_path / "view", (SeenFile("/var/log/web", 6),), (), sandboxed=False)
    assert [(each.path, each.size) for each in found] == [("/var/log/web", 6)]
    assert (tmp_path / "late" / found[0].stored).read_text() == "onetwo"
    assert (tmp_path / "late" / found[0].stored).stat().st_mode & 0o777 == 0o600
    assert differs == ("/var/log/web was copied after the dump, cut from 11 to 6 bytes",)
    assert taker.room == (1 << 20) - 6


@pytest.mark.parametrize(
    ("path", "size", "differs"),
    [
        ("/x", 3, "/x was copied after the dump, while its owner went on"),
        ("/x", None, "/x was copied after the dump, while its owner went on"),
        ("/x", 9, "/x was copied after the dump, extended from 3 to 9 bytes"),
        ("/x", 2 << 20, "/x has changed since the copy, and there is no room for its 2 MiB"),
    ],
)
def test_what_is_done_is_told(taker: Taker, tmp_path: Path, path: str, size: int | None, differs: str) -> None:
    """Also what is not done for want of room."""
    host(tmp_path, path, "abc")
    found, told = take(taker, tmp_path, SeenFile(path, size))
    assert told == (differs,)
    assert found == ([path] if "no room" not in differs else [])


def test_what_the_copy_has_is_not_taken_again(taker: Taker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not changed since; carried with the images; gone; a directory; of a service's own /tmp. What is absent is."""
    monkeypatch.setattr(taker, "request", replace(taker.request, since=time.time() + 100))
    for path in ("/usr/lib/x.so", "/out/data", "/tmp/y", "/run/web/pid"):
        host(tmp_path, path, "abc", old=True)
    seen = [SeenFile(p, 3) for p in ("/usr/lib/x.so", "/out/data", "/run/web/pid", "/gone", "/usr", "/tmp/y")]
    assert take(taker, tmp_path, *seen)[0] == ["/out/data", "/tmp/y"]
    assert take(taker, tmp_path, *seen, sandboxed=True)[0] == ["/out/data"]


def test_they_are_laid_over_the_copy(tmp_path: Path) -> None:
    """A file that is there keeps its inode and mode; one that is not gets those that it had."""
    late, root = tmp_path / "late", tmp_path / "root"
    late.mkdir()
    (root / "var").mkdir(parents=True)
    (late / "1").write_text("new")
    (late / "2").write_text("other")
    (root / "var/log").write_text("much older")
    (root / "var/log").chmod(0o640)
    inode = (root / "var/log").stat().st_ino
    own = (os.getuid(), os.getgid())
    lay((LateFile("/var/log", "1", 3, 0o666, *own), LateFile("/srv/a/b", "2", 5, 0o604, *own)), late, root)
    assert ((root / "var/log").read_text(), (root / "srv/a/b").read_text()) == ("new", "other")
    status = (root / "var/log").stat()
    assert (status.st_ino, status.st_mode & 0o777) == (inode, 0o640)
    assert (root / "srv/a/b").stat().st_mode & 0o777 == 0o604

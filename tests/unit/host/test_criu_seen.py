"""What a dump's images tell of files and of how long all stood still."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.host import criu_seen
from kupgrade.host.criu_seen import SeenFile

IMAGES: dict[str, list[dict[str, Any]]] = {
    "files.img": [
        {"type": 1, "id": 1, "reg": {"name": "/usr/bin/web", "size": 900, "mode": 0o100755}},
        {"type": 1, "id": 2, "reg": {"name": "/var/log/web", "mode": 0o100644}},
        {"type": 1, "id": 3, "reg": {"name": "/srv/gone", "size": 5}},
        {"type": 1, "id": 4, "reg": {"name": "/srv/link_remap.3", "size": 5}},
        {"type": 3, "id": 5, "isk": {"ino": 9}},
    ],
    "remap-fpath.img": [{"orig_id": 3, "remap_id": 4}],
    "stats-dump": [{"dump": {"freezing_time": 10, "frozen_time": 250000}}],
}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of images, and what pycriu would read out of them."""
    for name in IMAGES:
        (tmp_path / name).touch()
    fake = SimpleNamespace(load=lambda file, pretty: {"entries": IMAGES[Path(file.name).name]})
    monkeypatch.setitem(sys.modules, "pycriu", SimpleNamespace(images=fake))
    return tmp_path


def test_files_are_those_that_a_restore_opens_by_name(images: Path) -> None:
    """With the size that it asks for; one without a name of its own is found by the one that criu made."""
    assert criu_seen.files(images) == (
        SeenFile("/usr/bin/web", 900),
        SeenFile("/var/log/web", None),
        SeenFile("/srv/link_remap.3", 5),
    )


def test_how_long_criu_stopped_all_is_in_its_statistics(images: Path) -> None:
    """In microseconds; without statistics nobody knows."""
    assert criu_seen.stood_still(images) == 0.25
    (images / "stats-dump").unlink()
    assert criu_seen.stood_still(images) is None

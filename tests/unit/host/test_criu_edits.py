"""Edits of criu's images, in the place of pycriu one that reads and writes JSON."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import criu_edits


@pytest.fixture(autouse=True)
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(file: Any, *, pretty: bool) -> Any:
        assert not pretty  # numbers stay numbers
        return json.loads(file.read())

    def dump(image: Any, file: Any) -> None:
        file.write(json.dumps(image).encode())

    monkeypatch.setattr(criu_edits, "_images", lambda: SimpleNamespace(load=load, dump=dump))


def write(path: Path, *entries: object) -> Path:
    path.write_text(json.dumps({"magic": "X", "entries": entries}))
    return path


def entries(path: Path) -> list[Any]:
    found: list[Any] = json.loads(path.read_text())["entries"]
    return found


def test_all_processes_share_the_user_namespace_of_criu(tmp_path: Path) -> None:
    """Their other namespaces stay what they are; what is so already is not written again."""
    write(tmp_path / "inventory.img", {"root_ids": {"user_ns_id": 6, "mnt_ns_id": 5}})
    first = write(tmp_path / "ids-10.img", {"user_ns_id": 11, "mnt_ns_id": 5})
    write(tmp_path / "ids-12.img", {"user_ns_id": 11, "mnt_ns_id": 5})
    assert criu_edits.share_user_namespace(tmp_path) == 2
    assert entries(first) == [{"user_ns_id": 6, "mnt_ns_id": 5}]
    assert criu_edits.share_user_namespace(tmp_path) == 0


def test_images_without_an_answer_are_not_guessed_at(tmp_path: Path) -> None:
    """A number of another namespace would be one that criu makes."""
    write(tmp_path / "inventory.img", {})
    with pytest.raises(BadInputError, match="no user namespace"):
        criu_edits.share_user_namespace(tmp_path)


def test_of_the_hosts_objects_only_the_own_segments_are_left(tmp_path: Path) -> None:
    """What another service has in shared memory goes nowhere; semaphores and queues neither."""
    shm = write(tmp_path / "ipcns-shm-9.img", {"desc": {"id": 3}, "extra": "AA=="}, {"desc": {"id": 4}})
    sem = write(tmp_path / "ipcns-sem-9.img", {"desc": {"id": 0}})
    write(tmp_path / "ipcns-msg-9.img")
    assert criu_edits.keep_shared_memory(tmp_path, {3}) == 2
    assert entries(shm) == [{"desc": {"id": 3}, "extra": "AA=="}]
    assert entries(sem) == []

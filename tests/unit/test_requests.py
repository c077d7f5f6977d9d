"""Files of the automation: what hooks wrote is read with suspicion, what was made of it is logged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.model.automation import Attempt, Verdict, Withdrawn
from kupgrade.requests import KEPT, LARGEST, MOST, NOTE, Requests, leave_note, remove_note

GOOD = {"format": "kupgrade.request/1", "release": "6.12.57", "source": "debian"}


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    state = tmp_path / "kupgrade"
    (state / "pending").mkdir(parents=True, mode=0o700)
    state.chmod(0o700)
    return Requests(state)


def put(requests: Requests, name: str, data: bytes | dict[str, Any], mode: int = 0o600) -> Path:
    path = requests.folder / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    path.chmod(mode)
    return path


def ask(requests: Requests, *releases: str) -> None:
    for release in releases:
        put(requests, f"{release}.json", {**GOOD, "release": release})


def test_nothing_is_made_by_reading(tmp_path: Path) -> None:
    """On a host without requests reading finds nothing and leaves nothing."""
    found = Requests(tmp_path / "kupgrade")
    assert found.read().requests == () and found.attempts() == () and list(tmp_path.iterdir()) == []


def test_requests_come_oldest_release_first(requests: Requests) -> None:
    """By release and not by name, with their source and the time at which they were written."""
    ask(requests, "6.12.100", "6.12.57", "6.12.9")
    os.utime(requests.folder / "6.12.9.json", (1.8e9, 1.8e9))
    found = requests.read()
    assert found.releases == ("6.12.9", "6.12.57", "6.12.100") and found.ignored == ()
    assert (found.requests[0].source, found.requests[0].time) == ("debian", 1.8e9)


BAD: dict[str, tuple[str, bytes | dict[str, Any], int, str]] = {
    "torn": ("6.12.57.json", b'{"format":"kupgrade.requ', 0o600, "torn"),
    "empty": ("6.12.57.json", b"", 0o600, "torn"),
    "no text": ("6.12.57.json", b"\xff\xfe\0", 0o600, "torn"),
    "deep": ("6.12.57.json", b"[" * 4000, 0o600, "torn"),
    "too long": ("6.12.57.json", json.dumps(GOOD).encode() + b" " * LARGEST, 0o600, "longer"),
    "no object": ("6.12.57.json", b"[1]", 0o600, "format"),
    "no format": ("6.12.57.json", {"release": "6.12.57"}, 0o600, "format None"),
    "another format": ("6.12.57.json", {**GOOD, "format": "kupgrade.request/2"}, 0o600, "request/2"),
    "another release": ("6.12.57.json", {**GOOD, "release": "6.12.58"}, 0o600, "another release"),
    "a release that is none": ("6.12.57.json", {**GOOD, "release": ["6.12.57"]}, 0o600, "another release"),
    "no source": ("6.12.57.json", {**GOOD, "source": 3}, 0o600, "source"),
    "a source that writes on terminals": ("6.12.57.json", {**GOOD, "source": "\x1b[2J"}, 0o600, "source"),
    "an endless source": ("6.12.57.json", {**GOOD, "source": "x" * 100}, 0o600, "source"),
    "readable by others": ("6.12.57.json", GOOD, 0o644, "mode 0644"),
    "writable by others": ("6.12.57.json", GOOD, 0o602, "mode 0602"),
    "no name of ours": ("6.12.57", GOOD, 0o600, "called that"),
    "hidden": (".6.12.57.json", GOOD, 0o600, "not a kernel release"),
    "a name with blanks": ("6.12 57.json", GOOD, 0o600, "not a kernel release"),
    "a name with an escape": ("\x1b[2J.json", GOOD, 0o600, "not a kernel release"),
    "a name of nothing": (".json", GOOD, 0o600, "not a kernel release"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_and_ignored(requests: Requests, name: str) -> None:
    """What is no request is told with the reason and left where it is; the others count."""
    file, data, mode, words = BAD[name]
    path = put(requests, file, data, mode)
    ask(requests, "6.12.60")
    found = requests.read()
    assert found.releases == ("6.12.60",) and len(found.ignored) == 1
    assert words in found.ignored[0] and found.ignored[0].isprintable()
    assert path.exists()


@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "dangling link"])
def test_what_is_no_file_is_ignored(requests: Requests, kind: str) -> None:
    """A link is not followed, a pipe does not block."""
    path = requests.folder / "6.12.57.json"
    match kind:
        case "link":
            target = requests.state / "good.json"
            target.write_text(json.dumps(GOOD))
            target.chmod(0o600)
            path.symlink_to(target)
        case "dangling link":
            path.symlink_to("nowhere")
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path, 0o600)
    found = requests.read()
    assert found.requests == () and len(found.ignored) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs chown")
def test_other_owners_are_ignored(requests: Requests) -> None:
    """A file of another user's asks for nothing."""
    os.chown(put(requests, "6.12.57.json", GOOD), 1234, 1234)
    assert "owner 1234" in requests.read().ignored[0]


@pytest.mark.parametrize("how", ["mode", "file", "link"])
def test_a_directory_of_others_is_refused(requests: Requests, how: str) -> None:
    """Whoever can write there decides what is upgraded to."""
    if how == "mode":
        requests.folder.chmod(0o777)
    else:
        requests.folder.rmdir()
        requests.folder.write_text("") if how == "file" else requests.folder.symlink_to("/tmp")
    with pytest.raises(BadInputError, match=r"root's alone|is not a directory"):
        requests.read()


def test_a_flood_is_bounded(requests: Requests) -> None:
    """Thousands of files are not all read, and that is told."""
    ask(requests, *(f"6.12.{n}" for n in range(MOST + 10)))
    found = requests.read()
    assert len(found.requests) == MOST and "10 more files" in found.ignored[0]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_ignored(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """No content makes the reader fail."""
    state = tmp_path_factory.mktemp("k")
    (state / "pending").mkdir(mode=0o700)
    requests = Requests(state)
    put(requests, "6.12.57.json", data)
    found = requests.read()
    assert len(found.requests) + len(found.ignored) == 1


def test_a_request_is_withdrawn_once(requests: Requests) -> None:
    """Twice is no error; a name that is no release reaches no file."""
    ask(requests, "6.12.57", "6.12.60")
    for _ in range(2):
        requests.withdraw("6.12.57")
    assert requests.read().releases == ("6.12.60",)
    with pytest.raises(BadInputError):
        requests.withdraw("../automation")


LOOK = Attempt(1.8e9, 1.8e9, "apply", Verdict.WAITS, "no window is open", ("6.12.57",), "6.12.57", next=1.9e9)


def test_attempts_are_logged(requests: Requests) -> None:
    """What was decided comes back as it was, privately."""
    full = replace(LOOK, withdrawn=(Withdrawn("6.1", "it runs"),), ignored=("x: torn",), upgrade="U", plan="P", code=75)
    assert requests.record(full) == full and requests.attempts() == (full,)
    assert (requests.state / "automation.json").stat().st_mode & 0o777 == 0o600


def test_the_same_answer_again_is_counted(requests: Requests) -> None:
    """Ten looks in a closed window are one line; another answer is a new one."""
    for minute in range(10):
        requests.record(replace(LOOK, time=1.8e9 + 600 * minute, last=1.8e9 + 600 * minute, next=1.9e9 + minute))
    (one,) = requests.attempts()
    assert (one.count, one.time, one.last, one.next) == (10, 1.8e9, 1.8e9 + 5400, 1.9e9 + 9)
    requests.record(replace(LOOK, why="logged in: ann"))
    requests.record(LOOK)
    requests.record(replace(LOOK, withdrawn=(Withdrawn("6.1", "it runs"),)))
    assert [each.count for each in requests.attempts()] == [10, 1, 1, 1]


def test_the_log_is_bounded(requests: Requests) -> None:
    """Only the latest are kept."""
    for number in range(KEPT + 5):
        requests.record(replace(LOOK, why=str(number)))
    assert [each.why for each in requests.attempts()] == [str(number) for number in range(5, KEPT + 5)]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"format":"kupgrade.automation/9"}', b'{"format":"kupgrade.automation/1","attempts":[1]}'],
)
def test_a_damaged_log_is_told_and_then_begun_anew(requests: Requests, data: bytes) -> None:
    """Reading it is an error with a remedy, the next attempt replaces it."""
    (requests.state / "automation.json").write_bytes(data)
    with pytest.raises(BadInputError, match="Remove it"):
        requests.attempts()
    requests.record(LOOK)
    assert requests.attempts() == (LOOK,)


def test_the_note_for_logins(tmp_path: Path) -> None:
    """It is readable by all, replaced, removed, and never a failure."""
    leave_note(tmp_path, "kupgrade: hello")
    assert (tmp_path / NOTE).read_text() == "kupgrade: hello\n" and (tmp_path / NOTE).stat().st_mode & 0o777 == 0o644
    remove_note(tmp_path)
    remove_note(tmp_path)
    assert not (tmp_path / NOTE).exists()
    (tmp_path / "run/motd.d").rmdir()
    (tmp_path / "run/motd.d").write_text("in the way")
    leave_note(tmp_path, "x")

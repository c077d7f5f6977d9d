"""What logind says: who holds up a shutdown, who is logged in. Unknown answers are errors, never "nobody"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError, ToolError
from kupgrade.host import command, logind


def reply(kind: str, *rows: Any) -> str:
    return json.dumps({"type": kind, "data": [list(rows)]})


def inhibitor(what: str, who: str, why: str, mode: str) -> list[Any]:
    return [what, who, why, mode, 0, 812]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], ()),
        ([inhibitor("shutdown", "APT", "installing", "block")], ("APT (installing)",)),
        ([inhibitor("idle:sleep", "backup", "", "block")], ("backup",)),
        ([inhibitor("shutdown:sleep", "rpm", "x", "block-weak")], ("rpm (x)",)),
        ([inhibitor("shutdown", "unattended-upgrades", "x", "delay")], ()),
        ([inhibitor("handle-power-key:idle", "desktop", "x", "block")], ()),
    ],
)
def test_who_holds_up_a_shutdown(rows: list[Any], found: tuple[str, ...]) -> None:
    """Blocks of shutdown or sleep count, delays and power keys do not."""
    assert logind.inhibitors_of(reply("a(ssssuu)", *rows)) == found


@pytest.mark.parametrize("text", ["", "{", "[]", '{"data":1}', '{"data":[[["shutdown"]]]}', '{"data":[1]}', "null"])
def test_answers_without_sense_are_errors(text: str) -> None:
    """What is not understood is not taken for "nobody"."""
    with pytest.raises(KupgradeError):
        logind.inhibitors_of(text)


SESSIONS = """\
Name=ann
Class=user
State=active

Name=gdm
Class=greeter
State=active

Name=cron
Class=background
State=active

Name=bob
Class=manager
State=active

Name=eve
Class=user
State=closing

Name=dan
Class=user-early
State=online
"""


@pytest.mark.parametrize(
    ("text", "found"), [(SESSIONS, ("ann", "dan")), ("", ()), ("Class=user\nState=active\n", ("somebody",))]
)
def test_who_is_logged_in(text: str, found: tuple[str, ...]) -> None:
    """People with a session of their own; no greeters, managers, cron jobs, nor who is leaving."""
    assert logind.users_of(text) == found


def test_without_files_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without logind, or with nothing held and nobody there, starts no program."""
    monkeypatch.setattr(command, "run", lambda *_, **__: pytest.fail("asked"))
    assert logind.inhibitors(tmp_path) == () and logind.users(tmp_path) == ()
    for name in ("inhibit", "sessions"):
        (tmp_path / "run/systemd" / name).mkdir(parents=True)
    assert logind.inhibitors(tmp_path) == () and logind.users(tmp_path) == ()


def test_logind_is_asked_when_there_is_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in /run is enough to ask; a failure of the question is an error."""
    for name in ("inhibit/1", "sessions/c1"):
        path = tmp_path / "run/systemd" / name
        path.parent.mkdir(parents=True)
        path.write_text("")
    answers = {
        "ListInhibitors": reply("a(ssssuu)", inhibitor("shutdown", "APT", "", "block")),
        "ListSessions": reply("a(susso)", ["c1", 1000, "ann", "", "/x"]),
        "--property=State": "Name=ann\nClass=user\nState=active\n",
    }
    monkeypatch.setattr(command, "run", lambda argv, **_: command.Completed(0, answers[argv[-1]], ""))
    assert (logind.inhibitors(tmp_path), logind.users(tmp_path)) == (("APT",), ("ann",))

    def fail(argv: list[str], **_: Any) -> None:
        raise ToolError(tuple(argv), 1, "Failed to connect to bus")

    monkeypatch.setattr(command, "run", fail)
    for question in (logind.inhibitors, logind.users):
        with pytest.raises(KupgradeError):
            question(tmp_path)


def test_a_session_that_ends_while_it_is_asked_about_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """loginctl fails for one that is gone and says nothing of those after it: all are listed once more."""
    (tmp_path / "run/systemd/sessions").mkdir(parents=True)
    (tmp_path / "run/systemd/sessions/c1").write_text("")
    listed = iter([["c7", "c1"], ["c1"]])

    def run(argv: list[str], **_: Any) -> command.Completed:
        if argv[-1] == "ListSessions":
            rows = [[name, 1000, "ann", "", "/x"] for name in next(listed)]
            return command.Completed(0, reply("a(susso)", *rows), "")
        if "c7" in argv:
            raise ToolError(tuple(argv), 1, "No session 'c7' known")
        return command.Completed(0, "Name=ann\nClass=user\nState=active\n", "")

    monkeypatch.setattr(command, "run", run)
    assert logind.users(tmp_path) == ("ann",)

"""`kupgrade status --watch`: on a terminal in place, elsewhere a line for each event, until the upgrade is over."""

from __future__ import annotations

from typing import Any

import pytest

from kupgrade.model.record import RecordKind
from tests.unit.cli.conftest import COMMITTED, HANDS_OFF, write

BEGUN = (RecordKind.STARTED, 0, {})
DONE = (RecordKind.DONE, 0, {"seconds": 0.5})


def watched(host: Any, *turns: Any, terminal: bool = False) -> Any:
    """Watch while these records are appended, one turn a look; an exception is raised instead."""
    steps = iter(turns)

    def sleep(_seconds: float) -> None:
        turn = next(steps)
        if isinstance(turn, BaseException):
            raise turn
        journal = host.composed.state.open_current()
        state = write(journal, turn)
        journal.close()
        if state.over:
            host.composed.state.finish(state.plan.upgrade)

    host.change(sleep=sleep, terminal=lambda: terminal)
    return host.call("status", "--watch")


def test_without_a_terminal_each_event_is_one_line(host: Any) -> None:
    """The standing once, then what is new, and how it ended; no control characters."""
    host.open(BEGUN)
    result = watched(host, (), (DONE,), (), COMMITTED[2:])
    assert result.exit_code == 0
    assert result.output.count("next:") == 1
    assert result.output.count("done: ") == 1
    assert result.output.splitlines()[-1].startswith("Last: ")
    assert "\x1b" not in result.output


def test_on_a_terminal_it_is_drawn_in_place(host: Any) -> None:
    """From the top over what is there, the rest of each line and of the screen erased; nothing when nothing changed."""
    host.open(BEGUN)
    result = watched(host, (), (DONE,), (), COMMITTED[2:], terminal=True)
    assert result.exit_code == 0
    assert result.output.count("\x1b[H") == 3
    assert result.output.count("\x1b[J") == 3
    assert "\x1b[2J" not in result.output
    assert all("\x1b[K" in line for line in result.output.splitlines() if "next:" in line)


def test_it_ends_when_a_person_is_needed(host: Any) -> None:
    """With exit code 5, as status without --watch."""
    host.open(BEGUN)
    assert watched(host, HANDS_OFF).exit_code == 5


def test_an_interrupt_ends_the_watching_only(host: Any) -> None:
    """Exit code 130, and the journal is as it was."""
    host.open(BEGUN)
    before = host.snapshot()
    assert watched(host, KeyboardInterrupt()).exit_code == 130
    assert host.snapshot() == before


@pytest.mark.parametrize("terminal", [False, True])
def test_without_an_upgrade_it_says_so_and_ends(host: Any, terminal: bool) -> None:
    """There is nothing to wait for."""
    result = watched(host, terminal=terminal)
    assert result.exit_code == 0
    assert "No upgrade is open" in result.output


def test_history_json_has_the_blackout_of_each_workload(host: Any) -> None:
    """In seconds, by name."""
    host.open(*COMMITTED)
    lines, code = host.lines("history")
    assert code == 0
    assert lines[0]["blackout"] == {"demo": 1.5}

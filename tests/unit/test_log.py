"""Events of an upgrade as lines."""

from __future__ import annotations

import io
import json

from kupgrade.core.fold import fold
from kupgrade.log import logger, reporter
from kupgrade.model.codec import encode
from kupgrade.model.record import Record, RecordKind, State
from tests.unit.test_planner import plan


def records() -> tuple[Record, State]:
    first = Record(1, RecordKind.PLANNED, "boot-a", 1, 0.0, 0.0, data={"plan": encode(plan())})
    failed = Record(2, RecordKind.FAILED, "boot-a", 1, 1.0, 1.5, 0, {"error": "no room", "event": "mine"})
    return failed, fold([first])


def test_a_record_is_one_json_line_with_upgrade_and_step() -> None:
    """Each line names event, level, upgrade, step and uptime; data that would hide the event is left out."""
    out = io.StringIO()
    reporter(logger(out, json_lines=True))(*records())
    line = json.loads(out.getvalue())
    assert line["event"] == "failed" and line["level"] == "error" and line["step"] == "prepare-store"
    assert line["uptime"] == 1.5 and line["error"] == "no room" and line["upgrade"]


def test_without_a_terminal_lines_are_plain() -> None:
    """No colour and no cursor movement reaches the system's journal."""
    out = io.StringIO()
    reporter(logger(out))(*records())
    assert "\x1b" not in out.getvalue() and "event='failed'" in out.getvalue()

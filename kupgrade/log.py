"""Events of an upgrade through structlog: one vocabulary (the journal's record kinds), upgrade and step bound once.

Rendered for people on a terminal, as plain key=value lines for the system's journal, or as JSON lines. The boot agent
does not use this: structlog may not be importable where it runs, and importing it is blackout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

import structlog

from kupgrade.model.record import Record, RecordKind, State

# Data of these records is large and in the journal anyway.
_QUIET = frozenset({RecordKind.PLANNED, RecordKind.STARTED})


def logger(stream: TextIO | None = None, *, json_lines: bool = False) -> structlog.stdlib.BoundLogger:
    """A logger that writes to `stream` (default: standard output as it is now)."""
    out = stream or sys.stdout
    if json_lines:
        renderer: structlog.types.Processor = structlog.processors.JSONRenderer()
    elif out.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    else:
        renderer = structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True)
    found: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(out), processors=[structlog.processors.add_log_level, renderer]
    )
    return found


def reporter(base: structlog.stdlib.BoundLogger) -> Callable[[Record, State], None]:
    """A watcher for the executor's loop: one event a record."""

    def report(record: Record, state: State) -> None:
        bound = base.bind(upgrade=str(state.plan.upgrade), uptime=record.uptime)
        if record.step is not None:
            bound = bound.bind(step=state.plan.steps[record.step].kind)
        data = {} if record.kind in _QUIET else {key: value for key, value in record.data.items() if key != "event"}
        failed = record.kind in (RecordKind.FAILED, RecordKind.HANDS_OFF)
        (bound.error if failed else bound.info)(record.kind.value, **data)

    return report

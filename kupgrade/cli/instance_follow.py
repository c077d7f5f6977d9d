"""Following an instance's start and stop: its records as they come; and how its log is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from kupgrade.cli.follow import Progress
from kupgrade.cli.render import emit
from kupgrade.core.fold import fold
from kupgrade.core.timeline import verdict
from kupgrade.errors import ExitCode, NeedsHumanError
from kupgrade.model.codec import encode
from kupgrade.model.record import RecordKind, State

if TYPE_CHECKING:
    from pathlib import Path

    from kupgrade.cli.composition import Composition
    from kupgrade.machine.instances import Line
    from kupgrade.model.plan import Plan


@dataclass
class InstanceFollow:
    """Shows the records of one instance from `shown` on. The journal is only read."""

    composed: Composition
    name: str
    plan: Plan
    as_json: bool
    shown: int = 0
    _show: Progress = field(init=False)

    def __post_init__(self) -> None:
        self._show = Progress(self.plan, self.as_json, self.composed.terminal())

    @property
    def journal(self) -> Path:
        """The path of its journal."""
        return self.composed.state.instance(self.name).journal_path(self.plan.upgrade)

    def until(self, done: Callable[[State], bool]) -> State:
        """Show records until `done`. Raises NeedsHumanError when nobody works on it any more."""
        idle, own = 0.0, self.composed.state.instance(self.name)
        while True:
            records = own.read(self.plan.upgrade)
            for record in records[self.shown :]:
                self._show(record)
            state = fold(records)
            if done(state):
                return state
            alive = len(records) > self.shown or self.composed.holder(self.journal, self.composed.root) is not None
            idle = 0.0 if alive else idle + self.composed.watch_seconds
            self.shown = len(records)
            if idle > self.composed.idle_limit:
                raise NeedsHumanError(
                    f"Nobody works on the instance {self.name} any more",
                    "no process has held its journal for a while",
                    f"See journalctl -u kupgrade-instance@{self.name}.service; kupgrade instance stop {self.name}",
                )
            self.composed.sleep(self.composed.watch_seconds)

    def await_closed(self) -> None:
        """Wait a little until its keeper has let go of the journal, so that the next start finds the place free."""
        waited = 0.0
        while self.composed.state.instance(self.name).current_id() is not None and waited < self.composed.idle_limit:
            self.composed.sleep(self.composed.watch_seconds)
            waited += self.composed.watch_seconds

    def failure(self) -> tuple[ExitCode, str]:
        """Why it was not started: the exit code, and the first error."""
        records = self.composed.state.instance(self.name).read(self.plan.upgrade)
        errors = [str(each.data.get("error", "")) for each in records if each.kind is RecordKind.FAILED]
        code = verdict(records)
        return code, errors[0] if errors else fold(records).undo_reason


def told(line: Line, as_json: bool, line_format: str) -> None:
    """One line of an instance's kernel log, as dmesg prints it."""
    if as_json:
        emit({"format": line_format, **encode(line)})
        return
    stamp = f"[{line.seconds:12.6f}] "
    for each in line.text.split("\n"):
        click.echo(f"{stamp}{each}")

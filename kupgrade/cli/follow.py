"""Following an upgrade: its records as they come, then its verdict. The journal is only read: nobody is disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from kupgrade.cli.render import emit, result
from kupgrade.core.chronicle import blackouts, outcome_word
from kupgrade.core.explain import span
from kupgrade.core.fold import fold
from kupgrade.core.timeline import event, event_text, froze, verdict
from kupgrade.errors import ExitCode, KupgradeError, NeedsHumanError
from kupgrade.model.codec import encode
from kupgrade.model.record import Record, RecordKind, State

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.ids import UpgradeId
    from kupgrade.model.plan import Plan

_CLEAR_LINE = "\r\x1b[K"


@dataclass
class Progress:
    """Prints records: JSON lines, plain lines, or on a terminal the open step in a line that is overwritten."""

    plan: Plan
    as_json: bool
    terminal: bool
    began: float = 0.0

    def __call__(self, record: Record) -> None:
        """One record."""
        self.began = self.began or record.time
        told = event(record, self.plan, self.began)
        if self.as_json:
            emit(encode(told))
            return
        text = event_text(told)
        if self.terminal and record.kind in (RecordKind.STARTED, RecordKind.UNDO_STARTED):
            click.echo(_CLEAR_LINE + text, nl=False)
        elif self.terminal:
            colour = {RecordKind.FAILED: "red", RecordKind.HANDS_OFF: "red", RecordKind.COMMITTED: "green"}
            click.secho(_CLEAR_LINE + text, fg=colour.get(record.kind))
        else:
            click.echo(text)


def follow(composed: Composition, upgrade: UpgradeId, show: Progress) -> tuple[Record, ...]:
    """Show records until the upgrade is over or needs a person.

    Raises NeedsHumanError when nobody works on it any more: systemd restarts a worker that was killed at once.
    """
    shown, idle = 0, 0.0
    journal = composed.state.journal_path(upgrade)
    while True:
        records = composed.state.read(upgrade)
        for record in records[shown:]:
            show(record)
        if records and verdict(records) is not ExitCode.INTERRUPTED:
            return records
        alive = len(records) > shown or composed.holder(journal, composed.root) is not None
        idle = 0.0 if alive else idle + composed.watch_seconds
        if idle > composed.idle_limit:
            raise NeedsHumanError(
                "Nobody works on the upgrade any more",
                f"no process has held its journal for {span(composed.idle_limit)}",
                "See kupgrade status and journalctl -u kupgrade-apply.service",
            )
        shown = len(records)
        composed.sleep(composed.watch_seconds)


def run_here(composed: Composition, show: Progress) -> tuple[Record, ...]:
    """Without systemd: the loop in this process."""
    journal = composed.state.open_current()
    if journal is None:
        raise KupgradeError("The upgrade is not open any more", "another process has closed it")
    try:
        for record in journal.records:
            show(record)
        state = composed.run(journal, root=composed.root, watch=lambda record, _state: show(record))
        if state.over:
            composed.state.finish(state.plan.upgrade)
        composed.tell_metrics(composed.root)
        return journal.records
    finally:
        journal.close()


def report(composed: Composition, records: tuple[Record, ...], as_json: bool, code: ExitCode) -> ExitCode:
    """Print how it ended; returns `code`."""
    state = fold(records)
    if as_json:
        emit(result_of(composed, state, outcome_word(state), code))
        return code
    click.echo("\n" + _ending(state, froze(records)))
    for workload, seconds in blackouts(records).items():
        click.echo(f"  {workload} stood still for {span(seconds)}")
    return code


def result_of(composed: Composition, state: State, outcome: str, code: ExitCode) -> dict[str, object]:
    """The result object of one upgrade."""
    plan = state.plan
    return result(
        outcome,
        code,
        reason=state.hands_off or state.undo_reason,
        upgrade=str(plan.upgrade),
        old_release=plan.old_release,
        new_release=plan.new_release,
        running_release=composed.running_release(),
    )


def _ending(state: State, stood_still: bool) -> str:
    plan = state.plan
    if state.outcome is None:
        return f"A person is needed: {state.hands_off}. See kupgrade status; all evidence is kept."
    if state.committed:
        return f"Committed: {plan.new_release} serves."
    how = "Rolled back" if stood_still else "Taken back before the workloads stood still"
    return f"{how}: {plan.old_release} serves. Reason: {state.undo_reason or 'none given'}."

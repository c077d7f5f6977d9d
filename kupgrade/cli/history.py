"""`kupgrade history`: past upgrades with their outcome, and the releases that are not tried again."""

from __future__ import annotations

import time

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, output_options
from kupgrade.core.chronicle import HistoryEntry
from kupgrade.core.explain import span
from kupgrade.errors import ExitCode
from kupgrade.model.codec import encode

HISTORY_FORMAT = "kupgrade.history/1"


@click.command()
@output_options
@click.pass_context
def history(context: click.Context, as_json: bool, dry_run: bool) -> ExitCode:  # noqa: ARG001 - it never acts
    """List past upgrades, oldest first; a damaged record is listed as damaged."""
    composed = composition(context)
    composed.require_root("history")
    entries = composed.state.history()
    rejected = composed.state.rejected_releases()
    if as_json:
        for entry in entries:
            emit({"format": HISTORY_FORMAT, **encode(entry), "rejected": entry.new_release in rejected})
        return ExitCode.DONE
    if not entries:
        click.echo("No upgrade has been made.")
    for entry in entries:
        click.echo(_line(entry))
    for release, reason in rejected.items():
        click.echo(f"{release} is not tried again unless you insist with --retry-failed: {reason}")
    return ExitCode.DONE


def _still(entry: HistoryEntry, name: str) -> str:
    predicted = f" (predicted {span(entry.predicted[name])})" if name in entry.predicted else ""
    return f"{span(entry.blackout[name])}{predicted}"


def _line(entry: HistoryEntry) -> str:
    if not entry.new_release:
        return f"{entry.upgrade}  {entry.outcome:<11}  {entry.reason}"
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.started))
    took = f", took {span(entry.finished - entry.started)}" if entry.finished is not None else ""
    still = "".join(f", {name} stood still {_still(entry, name)}" for name in entry.blackout)
    lost = "".join(f", lost {name} ({why})" for name, why in entry.lost.items())
    reason = f": {entry.reason}" if entry.reason else ""
    return (
        f"{entry.upgrade}  {entry.outcome:<11}  {entry.old_release} -> {entry.new_release} "
        f"({entry.engine}, {entry.store}), {began}{took}{still}{lost}{reason}"
    )

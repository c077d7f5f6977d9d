"""`kupgrade rollback`: the operator's whole way back, while there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from kupgrade import worker
from kupgrade.cli.composition import composition
from kupgrade.cli.follow import Progress, follow, report, result_of, run_here
from kupgrade.cli.render import emit, output_options, result, unheard
from kupgrade.core.chronicle import OPERATOR
from kupgrade.core.fold import fold
from kupgrade.core.standing import would_undo
from kupgrade.core.timeline import verdict
from kupgrade.errors import ExitCode, NeedsHumanError, NotNowError, RefusedError
from kupgrade.model.record import Outcome, Record, State

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition

REASON = "the operator asked for it"


@click.command()
@click.option("--wait/--no-wait", default=True, help="Follow it to its end (default), or return at once.")
@click.option("--abandon", is_flag=True, help="Close an upgrade that needs a person, without touching the host.")
@output_options
@click.pass_context
def rollback(context: click.Context, wait: bool, abandon: bool, as_json: bool, dry_run: bool) -> ExitCode:
    """Take the open upgrade back: undo every step in reverse order.

    After the commit this is refused: the way back is then a new upgrade to the old release.
    """
    composed = composition(context)
    composed.require_root("rollback")
    state = composed.open_state()
    if state is None or state.over:
        return _nothing_open(composed, as_json)
    if abandon:
        return _abandon(composed, state, as_json, dry_run)
    _refuse_impossible(state)
    if dry_run:
        return _preview(composed, state, as_json)
    _ask(composed, state)
    return _carry_out(composed, state, as_json, wait)


def _nothing_open(composed: Composition, as_json: bool) -> ExitCode:
    history = composed.state.history()
    if history and history[-1].outcome == Outcome.COMMITTED.value:
        last = history[-1]
        raise RefusedError(
            f"The upgrade to {last.new_release} is committed",
            "the workloads have run on it, so the checkpoint of the old kernel is stale",
            f"The way back is a new upgrade: kupgrade apply --kernel {last.old_release}",
        )
    if as_json:
        emit(result("nothing-to-do", ExitCode.DONE, running_release=composed.running_release()))
    else:
        click.echo("No upgrade is open: there is nothing to roll back.")
    return ExitCode.DONE


def _refuse_impossible(state: State) -> None:
    if state.committed:
        raise RefusedError(
            f"The upgrade to {state.plan.new_release} is committed",
            "the workloads have run on it, so the checkpoint of the old kernel is stale",
            f"The way back is a new upgrade: kupgrade apply --kernel {state.plan.old_release}, once this one is closed",
        )
    if state.hands_off:
        raise NeedsHumanError(
            "The upgrade needs a person first", state.hands_off, "See kupgrade status; then kupgrade rollback --abandon"
        )


def _abandon(composed: Composition, state: State, as_json: bool, dry_run: bool) -> ExitCode:
    if not state.hands_off:
        raise RefusedError(
            "The upgrade can go on by itself", "only one that needs a person is abandoned", "Roll it back"
        )
    if composed.worker() is not None:
        raise NotNowError("A process still works on the upgrade", f"process {composed.worker()}", "Wait for it")
    if not dry_run:
        composed.state.finish(state.plan.upgrade)
    if as_json:
        outcome = "dry-run" if dry_run else "abandoned"
        emit(result(outcome, ExitCode.DONE, upgrade=str(state.plan.upgrade), reason=state.hands_off))
    else:
        click.echo(
            f"{'Would close' if dry_run else 'Closed'} {state.plan.upgrade} as it is; journal and images are kept."
        )
    return ExitCode.DONE


def _preview(composed: Composition, state: State, as_json: bool) -> ExitCode:
    steps = would_undo(state)
    if as_json:
        release = composed.running_release()
        emit({**result("dry-run", ExitCode.DONE, running_release=release), "would_undo": list(steps)})
        return ExitCode.DONE
    click.echo(f"Would undo {len(steps)} steps of {state.plan.upgrade}:")
    for step in steps:
        click.echo(f"  - {step}")
    return ExitCode.DONE


def _ask(composed: Composition, state: State) -> None:
    """Record the wish, or pass it to the worker that holds the journal. Asking twice changes nothing."""
    if state.undoing:
        return
    try:
        journal = composed.state.open_current()
    except NotNowError:
        worker.request_rollback(composed.root, REASON)
        return
    if journal is None:
        return
    try:
        latest = fold(journal.records)
        _refuse_impossible(latest)
        if latest.undoing or latest.over:
            return
        boot_id = composed.observe(latest, composed.root).boot_id
        worker.record_wish(journal, latest, boot_id, REASON, OPERATOR)
    finally:
        journal.close()


def _carry_out(composed: Composition, state: State, as_json: bool, wait: bool) -> ExitCode:
    show = Progress(state.plan, as_json, composed.terminal())
    at_work = composed.worker() is not None
    service = at_work or composed.start_worker(composed.root)
    try:
        if service and not wait:
            return _asked(state, as_json)
        records = follow(composed, state.plan.upgrade, show) if service else run_here(composed, show)
        return report(composed, records, as_json, _code(records))
    except KeyboardInterrupt:
        click.echo("The rollback goes on without this terminal. Follow it: kupgrade status --watch", err=as_json)
        if as_json:
            emit(result_of(composed, state, "interrupted", ExitCode.INTERRUPTED))
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        unheard()  # not a failure: it has ended as it has, or it goes on
        return _code(composed.state.read(state.plan.upgrade))


def _asked(state: State, as_json: bool) -> ExitCode:
    if as_json:
        emit(result("started", ExitCode.DONE, upgrade=str(state.plan.upgrade), reason=REASON))
    else:
        click.echo("The rollback has been asked for. Follow it: kupgrade status --watch")
    return ExitCode.DONE


def _code(records: Sequence[Record]) -> ExitCode:
    """For this verb a clean rollback is success, a commit that came first is not."""
    ended = verdict(records)
    if ended in (ExitCode.NEEDS_HUMAN, ExitCode.INTERRUPTED):
        return ended
    return ExitCode.DONE if fold(records).outcome is Outcome.ROLLED_BACK else ExitCode.REFUSED

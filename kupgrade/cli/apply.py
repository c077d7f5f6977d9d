"""`kupgrade apply`: approve a plan, hand it to the worker, follow what it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kupgrade import planfile, worker
from kupgrade.cli.composition import composition
from kupgrade.cli.follow import Progress, follow, report, result_of, run_here
from kupgrade.cli.leave import let_go, require_leave, waits
from kupgrade.cli.render import emit, output_options, result, unheard
from kupgrade.cli.target import Target, check_stored, new_plan, target_options
from kupgrade.core.explain import budget_text, over_budget, plan_text
from kupgrade.core.fold import fold
from kupgrade.core.timeline import verdict
from kupgrade.errors import ExitCode, KupgradeError, NotNowError, OverBudgetError, RefusedError, UsageError
from kupgrade.model.codec import encode
from kupgrade.model.schedule import Terms

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.plan import Plan


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of apply."""

    composed: Composition
    target: Target
    file: Path | None
    yes: bool
    wait: bool
    as_json: bool
    dry_run: bool
    now: bool


@click.command()
@click.argument("plan_file", metavar="[PLAN]", required=False, type=click.Path(dir_okay=False, path_type=Path))
@target_options
@click.option("--yes", is_flag=True, help="Do not ask (nothing is ever asked without a terminal).")
@click.option("--now", is_flag=True, help="At once: outside of the policy's windows, past what holds up a shutdown.")
@click.option("--wait/--no-wait", default=True, help="Follow the upgrade to its end (default), or return at once.")
@output_options
@click.pass_context
def apply(
    context: click.Context,
    plan_file: Path | None,
    kernel: str | None,
    engine: str,
    store: str,
    retry_failed: bool,
    yes: bool,
    now: bool,
    wait: bool,
    as_json: bool,
    dry_run: bool,
) -> ExitCode:
    """Carry out PLAN (from kupgrade plan --out), or a new plan, and follow it to its end.

    Exits with 0 when committed, 4 when rolled back, 5 when a person is needed; 1, 3, 6 and 75 when the old kernel
    was left untouched. The upgrade goes on when this terminal is lost.
    """
    target = Target(kernel, engine, store, retry_failed)
    call = _Call(composition(context), target, plan_file, yes, wait, as_json, dry_run, now)
    try:
        return _apply(call)
    except KupgradeError as error:
        if not as_json:
            raise
        refused = error.code in (ExitCode.REFUSED, ExitCode.USAGE, ExitCode.OVER_BUDGET, ExitCode.NOT_NOW)
        outcome = "refused" if refused else "nothing-to-do" if error.code is ExitCode.DONE else "failed"
        release = call.composed.running_release()
        emit(result(outcome, error.code, reason=str(error), running_release=release, error=error))
        return error.code


def _apply(call: _Call) -> ExitCode:
    held = _held(call)
    if held is not None:
        if call.dry_run:
            return _dry(call, held)
        let_go(call.composed, "a person said: now", at_once=True)
        return _carry_out(call, held)
    plan = _approved(call)
    state = call.composed.state
    if call.dry_run:
        return _dry(call, plan)
    if call.target.retry_failed:
        state.forget(plan.new_release)
    worker.clear_request(call.composed.root)
    state.begin(plan, Terms(at_once=call.now)).close()
    return _carry_out(call, plan)


def _dry(call: _Call, plan: Plan) -> ExitCode:
    if call.as_json:
        release = call.composed.running_release()
        emit(result("dry-run", ExitCode.DONE, new_release=plan.new_release, running_release=release))
    else:
        click.echo("\nDry run: nothing was touched.")
    return ExitCode.DONE


def _held(call: _Call) -> Plan | None:
    """The plan of an upgrade that is prepared and waits for its window, when --now is to let it go."""
    composed = call.composed
    if not call.now or call.file is not None or call.target.chosen:
        return None
    composed.require_root("apply")
    state = composed.open_state()
    return state.plan if state is not None and not state.over and waits(composed, state) else None


def _approved(call: _Call) -> Plan:
    """The plan, shown, checked and agreed to."""
    composed = call.composed
    composed.require_root("apply")
    if call.file is not None and call.target.chosen:
        raise UsageError("A stored plan cannot be changed", "--kernel, --engine and --store belong to kupgrade plan")
    refuse_open(composed)
    if call.file is None:
        plan = new_plan(composed, call.target)
    else:
        plan = planfile.read(call.file)
        check_stored(composed, plan, call.target.retry_failed)
    if call.as_json:
        emit(encode(plan))
    else:
        click.echo(plan_text(plan))
    if over := over_budget(plan):
        raise OverBudgetError(
            "The predicted blackout is over its limit",
            "; ".join(budget_text(budget) for budget in over),
            "Raise max_blackout in the policy, or choose a faster store",
        )
    require_leave(composed, plan, Terms(at_once=call.now))
    ask = composed.terminal() and not (call.yes or call.as_json or call.dry_run)
    if ask and not click.confirm(f"\nReplace {plan.old_release} by {plan.new_release} now?"):
        raise RefusedError("The upgrade was not begun", "you did not agree")
    return plan


def refuse_open(composed: Composition) -> None:
    """Raise NotNowError while an upgrade or an instance is open."""
    state = composed.open_state()
    if state is not None and not state.over:
        raise NotNowError(
            f"The upgrade {state.plan.upgrade} is still open",
            "only one can be",
            "See kupgrade status, kupgrade rollback",
        )
    composed.state.refuse_instances()


def _carry_out(call: _Call, plan: Plan) -> ExitCode:
    composed = call.composed
    show = Progress(plan, call.as_json, composed.terminal())
    service = _start(composed, plan, show)
    try:
        if service and not call.wait:
            return _started(call)
        records = follow(composed, plan.upgrade, show) if service else run_here(composed, show)
        return report(composed, records, call.as_json, verdict(records))
    except KeyboardInterrupt:
        return _interrupted(call, plan, service)
    except BrokenPipeError:
        unheard()  # not a failure: it has ended as it has, or it goes on
        return verdict(composed.state.read(plan.upgrade))


def _start(composed: Composition, plan: Plan, show: Progress) -> bool:
    """Start the worker; when that fails nothing was done yet, and the upgrade is closed again."""
    try:
        return composed.start_worker(composed.root)
    except KupgradeError as error:
        try:
            journal = composed.state.open_current()
        except NotNowError:
            return True  # it did start: somebody holds the journal
        if journal is not None:
            state = fold(journal.records)
            worker.record_wish(journal, state, plan.boot_id, f"the worker did not start: {error}", "kupgrade")
            journal.close()
            run_here(composed, show)
        raise


def _started(call: _Call) -> ExitCode:
    if call.as_json:
        state = call.composed.open_state()
        started = result("started", ExitCode.DONE, running_release=call.composed.running_release())
        emit(result_of(call.composed, state, "started", ExitCode.DONE) if state else started)
    else:
        click.echo("\nStarted. Follow it: kupgrade status --watch")
    return ExitCode.DONE


def _interrupted(call: _Call, plan: Plan, service: bool) -> ExitCode:
    if call.as_json:
        state = fold(call.composed.state.read(plan.upgrade))
        emit(result_of(call.composed, state, "interrupted", ExitCode.INTERRUPTED))
    elif service:
        click.echo("\nThe upgrade goes on without this terminal. Follow it: kupgrade status --watch")
        click.echo("Take it back: kupgrade rollback")
    else:
        click.echo("\nThe upgrade stands still where it is. Go on: kupgrade resume --worker")
        click.echo("Take it back: kupgrade rollback")
    return ExitCode.INTERRUPTED

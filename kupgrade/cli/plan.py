"""`kupgrade plan`: facts to plan, explained and stored; nothing is touched."""

from __future__ import annotations

from pathlib import Path

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.leave import ask_leave
from kupgrade.cli.render import emit, output_options, warn
from kupgrade.cli.target import Target, new_plan, target_options
from kupgrade.core.explain import over_budget, plan_text
from kupgrade.core.permission import need
from kupgrade.errors import ExitCode, UsageError
from kupgrade.model.codec import encode
from kupgrade.model.schedule import Terms


@click.command()
@target_options
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Store the plan for kupgrade apply FILE.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 10 when there is something to do.")
@output_options
@click.pass_context
def plan(
    context: click.Context,
    kernel: str | None,
    engine: str,
    store: str,
    retry_failed: bool,
    out: Path | None,
    detailed_exitcode: bool,
    as_json: bool,
    dry_run: bool,
) -> ExitCode:
    """Make a plan and explain it: every step with its undo, the blackout, what is lost.

    Exits with 3 when the upgrade is refused, 6 when the predicted blackout is over a limit.
    """
    composed = composition(context)
    composed.require_root("plan")
    if out is not None and out.exists() and not out.is_file():
        # It would be renamed into its place: no /dev/null any more.
        raise UsageError(f"{out} is not a regular file", "a plan replaces what is there", "Name another file")
    made = new_plan(composed, Target(kernel, engine, store, retry_failed))
    if as_json:
        emit(encode(made))
    else:
        click.echo(plan_text(made))
    if out is not None and not dry_run:
        from kupgrade import planfile

        planfile.write(out, made)
        if not as_json:
            click.echo(f"\nStored in {out}. Carry it out: kupgrade apply {out}")
    if over := over_budget(made):
        warn(f"kupgrade apply would refuse this: the blackout of {over[0].workload} is over its limit")
        return ExitCode.OVER_BUDGET
    answer = ask_leave(composed, need(made), Terms())
    if not answer.granted:
        warn(f"kupgrade apply would have to wait: {answer.why}")
    return ExitCode.PLAN_READY if detailed_exitcode else ExitCode.DONE

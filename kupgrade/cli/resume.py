"""`kupgrade resume`: go on with the open upgrade; what the worker and, by its own module, the boot agent do."""

from __future__ import annotations

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, output_options, result
from kupgrade.core.recovery import decide
from kupgrade.errors import ExitCode


@click.command()
@click.option("--worker", is_flag=True, help="As kupgrade-apply.service: carry out the upgrade in this kernel.")
@output_options
@click.pass_context
def resume(context: click.Context, worker: bool, as_json: bool, dry_run: bool) -> int:
    """Go on with the open upgrade where it stands. The services do this by themselves."""
    composed = composition(context)
    composed.require_root("resume")
    if dry_run:
        return _preview(context, as_json)
    arguments = ["--worker"] if worker else []
    return composed.resume([*arguments, "--json"] if as_json else arguments)


def _preview(context: click.Context, as_json: bool) -> ExitCode:
    composed = composition(context)
    state = composed.open_state()
    release = composed.running_release()
    if state is None:
        text, action, why = "No upgrade is open: nothing would be done.", "nothing", "no upgrade is open"
    else:
        decision = decide(state, composed.observe(state, composed.root))
        action, why = decision.action.value, decision.why
        text = f"Next would be: {action} ({why})."
    if as_json:
        emit({**result("dry-run", ExitCode.DONE, reason=why, running_release=release), "next": action})
    else:
        click.echo(text)
    return ExitCode.DONE

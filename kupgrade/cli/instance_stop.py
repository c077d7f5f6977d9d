"""`kupgrade instance stop`: fenced, overwritten, CPUs and memory given back, also after a start that was cut short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.instance_call import InstanceCall, ended
from kupgrade.cli.instance_follow import InstanceFollow
from kupgrade.cli.render import emit, output_options, result, unheard
from kupgrade.core.standing import would_undo
from kupgrade.errors import ExitCode, NeedsHumanError, NotNowError, RefusedError
from kupgrade.model.instance import checked_name

if TYPE_CHECKING:
    from kupgrade.model.record import State

REASON = "the operator asked for it"


@click.command()
@click.argument("name")
@click.option("--abandon", is_flag=True, help="Close one that needs a person, without touching the machine.")
@output_options
@click.pass_context
def stop(context: click.Context, name: str, abandon: bool, as_json: bool, dry_run: bool) -> ExitCode:
    """Stop the instance NAME, also a half-started one, and give CPUs and memory back as they were."""
    call = InstanceCall(composition(context), checked_name(name), as_json, dry_run)
    call.composed.require_root("instance stop")
    state = call.own.read_state()
    if state is None or state.over:
        raise RefusedError(
            f"There is no instance {name}", "nothing of that name was started", "See kupgrade instance list"
        )
    if abandon:
        return _abandon(call, state)
    if state.hands_off:
        remedy = f"Look at it; then kupgrade instance stop {name} --abandon. A restart gives everything back, too"
        raise NeedsHumanError(f"The instance {name} needs a person", state.hands_off, remedy)
    if dry_run:
        return _preview(call, state)
    return _stop(call, state)


def _abandon(call: InstanceCall, state: State) -> ExitCode:
    if not state.hands_off:
        raise RefusedError(f"The instance {call.name} can be stopped", "only one that needs a person is abandoned")
    if call.composed.holder(call.own.journal_path(state.plan.upgrade), call.composed.root) is not None:
        raise NotNowError("A process still works on it", "it holds its journal", "Wait for it")
    if call.dry_run:
        text = f"Would close {call.name} as it is; its journal would be kept."
        return ended(call, "dry-run", ExitCode.DONE, state.plan, text)
    call.own.finish(state.plan.upgrade)
    return ended(call, "abandoned", ExitCode.DONE, state.plan, f"Closed {call.name} as it is; its journal is kept.")


def _preview(call: InstanceCall, state: State) -> ExitCode:
    steps = would_undo(state)
    if call.as_json:
        emit({**result("dry-run", ExitCode.DONE), "instance": call.name, "would_undo": list(steps)})
        return ExitCode.DONE
    click.echo(f"Would undo {len(steps)} steps of {call.name}:")
    for step in steps:
        click.echo(f"  - {step}")
    return ExitCode.DONE


def _stop(call: InstanceCall, state: State) -> ExitCode:
    from kupgrade import keeper

    composed = call.composed
    following = InstanceFollow(composed, call.name, state.plan, call.as_json, state.last_seq)
    keeper.request_stop(call.name, composed.root, REASON)
    if composed.holder(following.journal, composed.root) is None and not composed.start_keeper(
        call.name, composed.root
    ):
        composed.keep(call.name, composed.root)
    try:
        last = following.until(lambda state: state.over or bool(state.hands_off))
    except KeyboardInterrupt:
        return ended(call, "interrupted", ExitCode.INTERRUPTED, state.plan, "It is stopped without this terminal.")
    except BrokenPipeError:
        unheard()
        return ExitCode.INTERRUPTED
    if last.hands_off:
        return ended(call, "hands-off", ExitCode.NEEDS_HUMAN, state.plan, f"A person is needed: {last.hands_off}")
    following.await_closed()
    text = f"{call.name} is stopped; its CPUs and its memory are this kernel's again."
    return ended(call, "stopped", ExitCode.DONE, state.plan, text)

"""`kupgrade instance start`: shown, agreed to, handed to its keeper, followed until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.instance_call import InstanceCall, ended
from kupgrade.cli.instance_follow import InstanceFollow
from kupgrade.cli.render import emit, output_options, unheard
from kupgrade.core.instance_standing import stands
from kupgrade.errors import ExitCode, KupgradeError, NotNowError, RefusedError, UsageError
from kupgrade.model.codec import encode
from kupgrade.model.instance import Wish, checked_name
from kupgrade.model.machine import CpuSet

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.plan import Plan

MIB = 1 << 20


def _cpus(text: str) -> int | CpuSet:
    """A number of CPUs, or a list of their numbers with a comma or a dash in it (3-3: CPU 3 alone)."""
    try:
        wanted = int(text) if text.isdecimal() else CpuSet.parse(text)
        if wanted in (0, CpuSet()):
            raise UsageError("An instance needs at least one CPU", f"--cpus {text!r}")
        return wanted
    except ValueError:  # Python reads no number of thousands of digits
        raise UsageError("That is no number of CPUs", f"--cpus {text:.20}...") from None
    except RefusedError as error:
        raise UsageError(error.what, error.why, "Use --cpus N, or a list: 2-3; 3-3 is CPU 3 alone") from None


@click.command()
@click.argument("name")
@click.option("--kernel", required=True, metavar="RELEASE|PATH", help="Its kernel: an installed release, or an image.")
@click.option("--initrd", default="", metavar="PATH", help="Its initrd; by default one with kupgrade's agent in it.")
@click.option("--cpus", default="1", metavar="N|LIST", help="How many CPUs (whole cores), or which (2-3; 3-3).")
@click.option("--memory", default=0, type=click.IntRange(0), metavar="MIB", help="Its memory; by default enough.")
@click.option("--append", default="", metavar="TEXT", help="More words for its command line; they win.")
@click.option("--yes", is_flag=True, help="Do not ask (nothing is ever asked without a terminal).")
@output_options
@click.pass_context
def start(
    context: click.Context,
    name: str,
    kernel: str,
    initrd: str,
    cpus: str,
    memory: int,
    append: str,
    yes: bool,
    as_json: bool,
    dry_run: bool,
) -> ExitCode:
    """Start the instance NAME and wait until it runs; on any failure everything is taken back.

    Exits with 0 when it runs, 3 and 75 when nothing was touched, 1 when it failed and was taken back.
    """
    call = InstanceCall(composition(context), checked_name(name), as_json, dry_run, yes)
    call.composed.require_root("instance start")
    # The keeper, who reads the initrd, has another working directory.
    path = str(Path(initrd).absolute()) if initrd else ""
    wish = Wish(call.name, kernel, path, _cpus(cpus), memory * MIB, append)
    plan = _approved(call, wish)
    if dry_run:
        return ended(call, "dry-run", ExitCode.DONE, plan, "Dry run: nothing was touched.")
    return _start(call, plan)


def _approved(call: InstanceCall, wish: Wish) -> Plan:
    composed = call.composed
    _refuse_open(composed)
    composed.state.refuse_instances()
    policy = composed.policy
    plan = composed.plan_instance(policy, composed.probe(composed.root, policy), wish, composed.root)
    if call.as_json:
        emit(encode(plan))
    else:
        click.echo(f"Instance {call.name}: {plan.new_release} beside {plan.old_release}")
        for number, step in enumerate(plan.steps, 1):
            click.echo(f"  {number}. {step.describe}\n     undo: {step.undo}")
        for warning in plan.warnings:
            click.echo(f"  warning: {warning}")
    ask = composed.terminal() and not (call.yes or call.as_json or call.dry_run)
    if ask and not click.confirm(f"\nStart {call.name} now?"):
        raise RefusedError("The instance was not started", "you did not agree")
    return plan


def _refuse_open(composed: Composition) -> None:
    state = composed.open_state()
    if state is not None and not state.over:
        raise NotNowError(
            f"The upgrade {state.plan.upgrade} is still open",
            "an instance and an upgrade would take the same CPUs and memory",
            "See kupgrade status, kupgrade rollback",
        )


def _start(call: InstanceCall, plan: Plan) -> ExitCode:
    from kupgrade import keeper

    composed = call.composed
    if not (composed.root / "run/systemd/system").is_dir():
        raise RefusedError("No instance can be kept here", "systemd does not run", "Boot this host with systemd")
    keeper.clear_request(call.name, composed.root)
    composed.state.begin_instance(call.name, plan).close()
    following = InstanceFollow(composed, call.name, plan, call.as_json)
    try:
        composed.start_keeper(call.name, composed.root)
    except KupgradeError as error:
        _take_back(call, f"its service did not start: {error}")
        raise
    try:
        state = following.until(lambda state: stands(state) or state.over or bool(state.hands_off))
    except KeyboardInterrupt:
        note = f"It goes on without this terminal. See kupgrade instance list; kupgrade instance stop {call.name}"
        return ended(call, "interrupted", ExitCode.INTERRUPTED, plan, note)
    except BrokenPipeError:
        unheard()
        return ExitCode.INTERRUPTED
    if state.hands_off:
        return ended(call, "hands-off", ExitCode.NEEDS_HUMAN, plan, f"A person is needed: {state.hands_off}")
    if state.over:
        code, reason = following.failure()
        return ended(call, "failed", code, plan, f"It was not started, everything is as before: {reason}", reason)
    return ended(call, "running", ExitCode.DONE, plan, f"{call.name} runs {plan.new_release}.")


def _take_back(call: InstanceCall, reason: str) -> None:
    """Nobody works on it: do it here."""
    from kupgrade import keeper

    keeper.request_stop(call.name, call.composed.root, reason)
    call.composed.keep(call.name, call.composed.root)

"""`kupgrade instance`: a kernel beside the host that is no upgrade, on CPUs and memory of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.instance_call import InstanceCall, ended
from kupgrade.cli.instance_follow import told
from kupgrade.cli.instance_start import start
from kupgrade.cli.instance_stop import stop
from kupgrade.cli.render import emit, output_options
from kupgrade.core.fold import fold
from kupgrade.core.instance_standing import listed, listed_text, stands
from kupgrade.errors import ExitCode, RefusedError
from kupgrade.model.codec import encode
from kupgrade.model.instance import Listed, checked_name

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition

INSTANCE_FORMAT = "kupgrade.instance/1"
RAN_FORMAT = "kupgrade.instance-run/1"
LINE_FORMAT = "kupgrade.instance-log/1"


@click.group()
def instance() -> None:
    """Run another kernel beside this one, on CPUs and memory of its own, until it is stopped.

    It is no upgrade: nothing is carried over, and this kernel goes on with what it keeps. One at a time.
    """


instance.add_command(start)
instance.add_command(stop)


@instance.command("list")
@output_options
@click.pass_context
def list_(context: click.Context, as_json: bool, dry_run: bool) -> ExitCode:  # noqa: ARG001 - it never acts
    """List the instances: how they are, CPUs, memory, release, since when."""
    composed = composition(context)
    composed.require_root("instance list")
    found = [each for name in composed.state.open_instances() if (each := _listed(composed, name)) is not None]
    for each in found:
        if as_json:
            emit({"format": INSTANCE_FORMAT, **encode(each)})
        else:
            click.echo(listed_text(each, time.time()))
    if not found and not as_json:
        click.echo("There is no instance.")
    return ExitCode.DONE


def _listed(composed: Composition, name: str) -> Listed | None:
    own = composed.state.instance(name)
    upgrade = own.current_id()
    if upgrade is None:
        return None
    records = own.read(upgrade)
    state = fold(records)
    if state.over:
        return None
    now = composed.observe(state, composed.root)
    here = now.boot_id == state.boot_id and stands(state)
    seen = composed.look(state, name, composed.root) if here else None
    return listed(name, records, state, now, seen, composed.holder(own.journal_path(upgrade), composed.root))


@instance.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on until it ends or is stopped.")
@click.option("--run", metavar="COMMAND", help="Run a command by the shell in it instead, and print what it says.")
@output_options
@click.pass_context
def console(context: click.Context, name: str, follow: bool, run: str | None, as_json: bool, dry_run: bool) -> ExitCode:
    """Print the kernel log of the instance NAME, read out of its memory; no input is passed to it.

    It needs no agent in it, and works after a panic, too. A command (--run) needs the agent; it may take a minute,
    gets no input, and the end of what it says is printed when it is done. Exits with 1 when the command fails.
    """
    composed = composition(context)
    composed.require_root("instance console")
    own = composed.state.instance(checked_name(name))
    if run is not None:
        return _run(composed, name, run, as_json, dry_run)
    next_seq = 0
    while True:
        state = own.read_state()
        if state is None or not stands(state):
            if next_seq:
                return ExitCode.DONE
            raise RefusedError(f"No instance {name} runs", "it has no log", "See kupgrade instance list")
        for line in composed.read_log(state, composed.root):
            if line.seq >= next_seq:
                next_seq = line.seq + 1
                told(line, as_json, LINE_FORMAT)
        if not follow:
            return ExitCode.DONE
        composed.sleep(max(composed.watch_seconds, 1.0))


def _run(composed: Composition, name: str, text: str, as_json: bool, dry_run: bool) -> ExitCode:
    state = composed.state.instance(name).read_state()
    if state is None or not stands(state):
        raise RefusedError(f"No instance {name} runs", "there is nothing to run it in", "See kupgrade instance list")
    if dry_run:
        call = InstanceCall(composed, name, as_json, dry_run)
        return ended(call, "dry-run", ExitCode.DONE, state.plan, f"Would run in {name}: {text}")
    ran = composed.run_command(state, name, text, composed.root)
    if as_json:
        emit({"format": RAN_FORMAT, **encode(ran)})
    else:
        click.echo(ran.said, nl=not ran.said.endswith("\n"))
    return ExitCode.DONE if ran.status == 0 else ExitCode.FAILED


@instance.command(hidden=True)
@click.argument("name")
@click.pass_context
def keep(context: click.Context, name: str) -> int:
    """As kupgrade-instance@NAME.service: start it, hold its guard, take it back."""
    from kupgrade import keeper

    composition(context).require_root("instance keep")
    return keeper.main(checked_name(name))

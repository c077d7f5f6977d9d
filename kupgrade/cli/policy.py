"""`kupgrade policy`: check the policy files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, output_options
from kupgrade.core.permission import moment
from kupgrade.core.windows import current, following
from kupgrade.errors import ExitCode
from kupgrade.model.codec import encode

if TYPE_CHECKING:
    from kupgrade.model.policy import Policy


@click.group()
def policy() -> None:
    """Check the policy files."""


def _when(now: float, merged: Policy) -> str:
    """What happens by itself, and when an upgrade may happen."""
    mode = f"by itself: {merged.automation.mode.value}"
    if not merged.windows:
        return f"{mode}; upgrades at any time"
    here, later = current(merged.windows, now), following(merged.windows, now)
    state = f"open until {moment(here.end)}" if here else "shut"
    opens = f", opens next {moment(later.begin)}" if later else ""
    return f"{mode}; windows {' and '.join(map(str, merged.windows))}: {state}{opens}"


@policy.command()
@output_options
@click.pass_context
def check(context: click.Context, as_json: bool, dry_run: bool) -> ExitCode:  # noqa: ARG001 - it never acts
    """Read all policy files, say which count and what they come to. Exits with 3 when one is not usable."""
    from kupgrade.policy import merge, read_fragments

    fragments = read_fragments(composition(context).root)
    merged = merge(fragments)
    files = [str(fragment.path) for fragment in fragments]
    if as_json:
        emit({"format": "kupgrade.policy/1", "files": files, "policy": encode(merged)})
        return ExitCode.DONE
    click.echo(f"The policy is usable: {len(files)} files, {len(merged.workloads)} workloads.")
    click.echo(f"  {_when(composition(context).time(), merged)}")
    for file in files:
        click.echo(f"  {file}")
    for workload in merged.workloads:
        found = workload.unit or workload.pidfile or workload.cgroup
        limit = merged.limit(workload)
        bound = "no blackout limit" if limit is None else f"blackout at most {limit:g} s"
        click.echo(f"  {workload.name}: {found}, {workload.fate.value}, {bound}, probe {workload.probe.kind.value}")
    for each in merged.preserve:
        click.echo(f"  {each.unit}: its descriptor store is preserved, losses: {each.losses.value}")
    return ExitCode.DONE

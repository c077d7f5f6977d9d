"""`kupgrade policy`: check the policy files."""

from __future__ import annotations

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, output_options
from kupgrade.errors import ExitCode
from kupgrade.model.codec import encode


@click.group()
def policy() -> None:
    """Check the policy files."""


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
    for file in files:
        click.echo(f"  {file}")
    for workload in merged.workloads:
        found = workload.unit or workload.pidfile or workload.cgroup
        limit = merged.limit(workload)
        bound = "no blackout limit" if limit is None else f"blackout at most {limit:g} s"
        click.echo(f"  {workload.name}: {found}, {workload.fate.value}, {bound}, probe {workload.probe.kind.value}")
    return ExitCode.DONE

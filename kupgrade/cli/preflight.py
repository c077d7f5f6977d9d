"""`kupgrade preflight`: what this host can do, and what stands in the way."""

from __future__ import annotations

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, output_options
from kupgrade.core.explain import preflight_json, preflight_text
from kupgrade.errors import ExitCode


@click.command()
@output_options
@click.pass_context
def preflight(context: click.Context, as_json: bool, dry_run: bool) -> ExitCode:  # noqa: ARG001 - it never acts
    """Say what this host can do and what stands in the way.

    Exits with 3 when no engine can upgrade this host.
    """
    composed = composition(context)
    composed.require_root("preflight")
    policy = composed.policy
    facts = composed.probe(composed.root, policy)
    capabilities = composed.capabilities(facts, policy)
    if as_json:
        emit(preflight_json(facts, capabilities))
    else:
        click.echo(preflight_text(facts, capabilities))
    able = any(not refusals for refusals in capabilities.values())
    return ExitCode.DONE if able else ExitCode.REFUSED

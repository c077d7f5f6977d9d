"""`kupgrade preflight`: what this host can do, and what stands in the way."""

from __future__ import annotations

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, output_options
from kupgrade.core.explain import preflight_json, preflight_text
from kupgrade.core.explain_more import more_json, more_text
from kupgrade.errors import ExitCode


@click.command()
@click.option("--kernel", metavar="RELEASE|PATH", help="The kernel to upgrade to; the newest installed one by default.")
@output_options
@click.pass_context
def preflight(
    context: click.Context,
    kernel: str | None,
    as_json: bool,
    dry_run: bool,  # noqa: ARG001 - it never acts
) -> ExitCode:
    """Say what this host can do and what stands in the way.

    Exits with 3 when no engine can upgrade this host.
    """
    composed = composition(context)
    composed.require_root("preflight")
    policy = composed.policy
    facts = composed.probe(composed.root, policy)
    capabilities = composed.capabilities(facts, policy)
    stores = composed.stores(facts, policy, kernel, composed.root)
    known = composed.errata(facts, policy, kernel, composed.root)
    if as_json:
        emit({**preflight_json(facts, capabilities, stores), **more_json(facts, policy, known)})
    else:
        click.echo(preflight_text(facts, capabilities, stores))
        for line in more_text(facts, policy, known):
            click.echo(line)
    able = any(not refusals for refusals in capabilities.values())
    return ExitCode.DONE if able else ExitCode.REFUSED

"""`kupgrade report`: one file with what a bug report needs and without secrets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, output_options
from kupgrade.errors import ExitCode
from kupgrade.model.codec import encode

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file to make (.tar.gz).")
@click.option("--redact", is_flag=True, help="Leave out IP and hardware addresses, too.")
@output_options
@click.pass_context
def report(context: click.Context, out: Path | None, redact: bool, as_json: bool, dry_run: bool) -> ExitCode:
    """Collect journals, plans, policy, versions, preflight, log excerpts and states of units in one file.

    It holds no checkpoint, no memory, no environment and no command line of a process, and what looks like a secret
    is replaced; look at it before you give it away all the same.
    """
    from kupgrade import bundle

    composed = composition(context)
    composed.require_root("report")
    wishes = bundle.Wishes(composed.root, redact, _units(composed))
    made = bundle.collect(wishes, _answers(composed))
    path = out or Path(f"kupgrade-report-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    if not dry_run:
        bundle.write(path, made)
    sizes = {name: len(data) for name, data in sorted(made.members.items())}
    if as_json:
        emit({"format": bundle.FORMAT, "file": "" if dry_run else str(path), "members": sizes})
        return ExitCode.DONE
    for name, size in sizes.items():
        click.echo(f"{size:9}  {name}")
    click.echo("Dry run: nothing was written." if dry_run else f"{path} (mode 0600)")
    return ExitCode.DONE


def _units(composed: Composition) -> tuple[str, ...]:
    try:
        return tuple(workload.unit for workload in composed.policy.workloads if workload.unit)
    except Exception:  # a policy that cannot be read is told by the member that it would have been
        return ()


def _answers(composed: Composition) -> dict[str, Any]:
    """What the other verbs would say, each asked when its member is made."""

    def status() -> Any:
        from kupgrade.cli.status import answer

        return answer(composed)

    def preflight() -> Any:
        from kupgrade.core.explain import preflight_json
        from kupgrade.core.explain_more import more_json

        policy = composed.policy
        facts = composed.probe(composed.root, policy)
        known = composed.errata(facts, policy, None, composed.root)
        stores = composed.stores(facts, policy, None, composed.root)
        told = preflight_json(facts, composed.capabilities(facts, policy), stores)
        return {**told, **more_json(facts, policy, known)}

    def history() -> Any:
        return [encode(entry) for entry in composed.state.history()]

    def policy() -> Any:
        return encode(composed.policy)

    return {"status": status, "preflight": preflight, "history": history, "policy": policy}

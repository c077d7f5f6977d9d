"""One call of an instance's verb that acts, and how it says what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from kupgrade.cli.render import emit, result
from kupgrade.errors import ExitCode

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.plan import Plan
    from kupgrade.statedir import StateDirectory


@dataclass(frozen=True, slots=True)
class InstanceCall:
    """Who is called on what instance, and how."""

    composed: Composition
    name: str
    as_json: bool
    dry_run: bool
    yes: bool = True

    @property
    def own(self) -> StateDirectory:
        """Where its journal is."""
        return self.composed.state.instance(self.name)


def ended(call: InstanceCall, outcome: str, code: ExitCode, plan: Plan, text: str, reason: str = "") -> ExitCode:
    """Print the last line; returns `code`."""
    if call.as_json:
        value = result(
            outcome,
            code,
            reason=reason,
            upgrade=str(plan.upgrade),
            new_release=plan.new_release,
            running_release=call.composed.running_release(),
        )
        emit({**value, "instance": call.name})
    else:
        click.echo(text, err=code not in (ExitCode.DONE, ExitCode.INTERRUPTED))
    return code

"""What the verbs print: text for people, one JSON value a line for machines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kupgrade.errors import ExitCode, KupgradeError

F = TypeVar("F", bound=Callable[..., Any])

RESULT_FORMAT = "kupgrade.result/1"
ERROR_FORMAT = "kupgrade.error/1"


def output_options(function: F) -> F:
    """--json and -n/--dry-run, the same for every verb."""
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON, one value a line.")(function)
    return click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done; touch nothing.")(function)


def emit(value: object) -> None:
    """One JSON value on a line of its own, at once."""
    click.echo(json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False))


def unheard() -> None:
    """The reader of stdout went away (kupgrade apply | head): nothing more is said, and no flush fails at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """A line on stderr."""
    click.secho(text, err=True, fg="yellow")


def timed_progress() -> Callable[[str], None]:
    """What tells each part of a rehearsal as it begins: a line on stderr, with the seconds since now."""
    begun = time.monotonic()

    def progress(text: str) -> None:
        click.echo(f"[{time.monotonic() - begun:6.1f} s] {text}", err=True)

    return progress


def show_error(error: KupgradeError, as_json: bool) -> None:
    """The error with why and remedy, and every refusal behind it; as JSON on stdout, as text on stderr."""
    refusals = tuple(getattr(error, "refusals", ()))
    if as_json:
        emit(error_json(error))
    elif error.code is ExitCode.DONE:
        click.echo(str(error))
    else:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
        if refusals:
            from kupgrade.core.explain import refusals_text

            click.echo(refusals_text(refusals), err=True)


def error_json(error: KupgradeError) -> dict[str, object]:
    """An error as one JSON object."""
    value: dict[str, object] = {"format": ERROR_FORMAT, **error.to_json()}
    refusals = tuple(getattr(error, "refusals", ()))
    if refusals:
        from kupgrade.model.codec import encode

        value["refusals"] = encode(refusals)
    return value


def result(
    outcome: str,
    code: ExitCode,
    *,
    reason: str = "",
    upgrade: str = "",
    old_release: str = "",
    new_release: str = "",
    running_release: str = "",
    error: KupgradeError | None = None,
) -> dict[str, object]:
    """The last line of a verb that acts."""
    value: dict[str, object] = {
        "format": RESULT_FORMAT,
        "outcome": outcome,
        "upgrade": upgrade,
        "old_release": old_release,
        "new_release": new_release,
        "running_release": running_release,
        "exit": int(code),
        "reason": reason,
    }
    if error is not None:
        value["error"] = error_json(error)
    return value

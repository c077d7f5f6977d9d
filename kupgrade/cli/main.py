"""The command group: verbs are imported when called, errors become exit codes here and nowhere else."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from kupgrade import __version__
from kupgrade.cli.render import show_error, unheard
from kupgrade.errors import ExitCode, KupgradeError, UsageError

# verb -> module, name of the command in it, help; the help stands here so that --help imports no verb.
VERBS: dict[str, tuple[str, str, str]] = {
    "preflight": ("preflight", "preflight", "Say what this host can do and what stands in the way."),
    "plan": ("plan", "plan", "Make a plan, explain it, store it."),
    "apply": ("apply", "apply", "Carry out a plan: replace the running kernel."),
    "auto": ("auto", "auto", "Take kernels that packages brought as the policy says (for the timer)."),
    "status": ("status", "status", "Say where the open upgrade stands and what comes next."),
    "rollback": ("rollback", "rollback", "Take the open upgrade back."),
    "resume": ("resume", "resume", "Go on with the open upgrade (for the boot services)."),
    "history": ("history", "history", "List past upgrades with their outcome."),
    "report": ("report", "report", "Collect what a bug report needs, without secrets."),
    "rehearse": ("rehearse", "rehearse", "Try an upgrade in a virtual host first."),
    "instance": ("instance", "instance", "Run another kernel beside this one: list, start, stop, console."),
    "policy": ("policy", "policy", "Check the policy files."),
}


class VerbGroup(click.Group):
    """Loads a verb's module when the verb is called; maps errors to exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All verbs, in the order in which one uses them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb, imported now."""
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command = getattr(importlib.import_module(f"kupgrade.cli.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The verbs with their help, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, _, text) in VERBS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002 - always false: this is the one that exits
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit; every way out has its code."""
        words = list(sys.argv[1:] if args is None else args)
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            # Names of files and processes are bytes: what this character set has not is escaped, as on stderr.
            sys.stdout.reconfigure(errors="backslashreplace")
        if os.environ.get("NO_COLOR"):
            extra.setdefault("color", False)
        try:
            code = super().main(
                words,
                prog_name=prog_name or "kupgrade",
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except Exception as error:
            code = _report(error, "--json" in words)
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        sys.exit(int(code or 0))


def _report(error: Exception, as_json: bool) -> ExitCode:
    """Print `error`; its exit code."""
    if os.environ.get("KUPGRADE_DEBUG"):
        traceback.print_exception(error)
    match error:
        case click.Abort():
            return ExitCode.INTERRUPTED
        case BrokenPipeError():
            # The reader went away (kupgrade history | head); Python would complain once more at exit.
            unheard()
            return ExitCode.FAILED
        case KupgradeError():
            known = error
        case click.ClickException():
            if not as_json:
                error.show()
                return ExitCode.USAGE
            known = UsageError(error.format_message())
        case OSError():
            known = KupgradeError("A system call failed", str(error), "KUPGRADE_DEBUG=1 shows where")
        case _:
            name = type(error).__name__
            known = KupgradeError(
                "kupgrade has a fault", f"{name}: {error}", "KUPGRADE_DEBUG=1 shows where; please report"
            )
    try:
        show_error(known, as_json)
    except OSError as failed:  # stdout is a file on a full disk, say
        unheard()
        click.echo(f"error: {known}; and stdout cannot be written: {failed.strerror}", err=True)
    return known.code


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit: 0 done, 1 failed with the old kernel untouched, 2 usage, 3 refused, 4 rolled back, 5 needs a person, "
    "6 over the blackout budget, 10 plan ready (--detailed-exitcode), 75 not now, 130 interrupted.",
)
@click.version_option(__version__, prog_name="kupgrade")
def cli() -> None:
    """Replace the running Linux kernel by a newer one while workloads go on."""


def main() -> None:
    """The entry point."""
    cli.main()


if __name__ == "__main__":
    main()

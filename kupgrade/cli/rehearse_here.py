"""`kupgrade rehearse --this-host`: a copy of this host is upgraded in a virtual machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from kupgrade.cli.apply import refuse_open
from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, error_json, timed_progress
from kupgrade.cli.target import AUTO, Target, new_plan
from kupgrade.errors import ExitCode, RefusedError, UsageError

F = TypeVar("F", bound=Callable[..., Any])
# Of the other options, those that mean something for a copy of this host.
_SHARED = {"engine", "store", "timeout", "keep", "as_json"}
_OWN = {"this_host", "live_images", "kernel", "retry_failed", "scratch", "leave_out", "guest_memory"}


@dataclass(frozen=True, slots=True)
class Choice:
    """What the operator chose for a rehearsal of this host. `guest_memory`: MiB."""

    kernel: str | None
    retry_failed: bool
    scratch: Path | None
    leave_out: tuple[str, ...]
    guest_memory: int | None
    live_images: bool = False

    @property
    def made(self) -> bool:
        """Whether anything was chosen."""
        return self != Choice(None, False, None, (), None)


def this_host_options(function: F) -> F:
    """--this-host and what belongs to it, as the one parameter `here`: None without it."""

    @functools.wraps(function)
    def collapsed(*args: Any, this_host: bool, **given: Any) -> Any:
        choice = Choice(**{name: given.pop(name) for name in Choice.__slots__})
        if choice.made and not this_host:
            raise UsageError(
                "--live-images, --kernel, --retry-failed, --scratch, --leave-out and --guest-memory are for a rehearsal"
                " of this host",
                "there is no --this-host",
                "The kernels of a virtual host are named by --from and --to",
            )
        return function(*args, here=choice if this_host else None, **given)

    directory = click.Path(path_type=Path, exists=True, file_okay=False)
    for option in (
        click.option(
            "--live-images",
            is_flag=True,
            help="Dump the kept workloads here, too, while they run, and restore that there. Each stands still for a"
            " moment, as long as criu takes for what changes meanwhile; what comes over TCP then is sent once more.",
        ),
        click.option("--guest-memory", type=click.IntRange(256), metavar="MIB", help="Its memory; by the workloads'."),
        click.option(
            "--leave-out", multiple=True, metavar="DIRECTORY", help="Is empty in the copy, like /tmp and caches."
        ),
        click.option("--scratch", type=directory, help="Where the copy is made; /var/lib/kupgrade by default."),
        click.option("--retry-failed", is_flag=True, help="Plan for a release that was rolled back before, too."),
        click.option("--kernel", metavar="RELEASE|PATH", help="Its new kernel, as for kupgrade plan."),
        click.option(
            "--this-host",
            is_flag=True,
            help="Upgrade a copy of this host, with its policy and kernels, without a network. Needs QEMU and room.",
        ),
    ):
        collapsed = option(collapsed)
    return collapsed  # type: ignore[return-value]  # the same command with other parameters


def run(context: click.Context, choice: Choice, *, as_json: bool) -> ExitCode:
    """Plan here, rehearse there, tell both."""
    _refuse_others(context)
    composed = composition(context)
    composed.require_root("rehearse --this-host")
    if choice.live_images:
        refuse_open(composed)
    from kupgrade.rehearsal import forecast, this_host

    # As the files are copied: below a link, or another spelling, nothing would be found to leave out.
    leave_out = tuple(str(Path(directory).resolve()) for directory in choice.leave_out)
    for directory, resolved in zip(choice.leave_out, leave_out, strict=True):
        if not Path(directory).is_absolute() or resolved == "/":
            raise UsageError(f"{directory!r} cannot be left out", "it is no absolute path below /")
    chose_engine = context.get_parameter_source("engine") is not ParameterSource.DEFAULT
    target = Target(
        choice.kernel,
        context.params["engine"] if chose_engine else AUTO,
        context.params["store"],
        choice.retry_failed,
    )
    try:
        plan = new_plan(composed, target)
    except RefusedError as error:
        told = forecast.refused(error_json(error))
    else:
        policy = composed.policy
        wish = this_host.Wish(
            plan=plan,
            facts=composed.probe(composed.root, policy),
            policy=policy,
            kernel=choice.kernel or "",
            scratch=choice.scratch,
            leave_out=leave_out,
            memory=choice.guest_memory,
            timeout=context.params["timeout"],
            keep=context.params["keep"],
            root=composed.root,
            live=choice.live_images,
        )
        told = dict(composed.rehearse_here(wish, timed_progress()))
    if as_json:
        emit(told)
    else:
        click.echo(forecast.text(told))
    return exit_code(str(told["outcome"]), str(told["predicted"]["outcome"]))


def _refuse_others(context: click.Context) -> None:
    given = [
        each.opts[0]
        for each in context.command.params
        if each.name not in _SHARED | _OWN
        and context.get_parameter_source(str(each.name)) not in (ParameterSource.DEFAULT, None)
    ]
    if given:
        raise UsageError(f"{', '.join(given)} cannot be used with --this-host", "the host is the one that there is")


def exit_code(outcome: str, predicted: str) -> ExitCode:
    """0 committed or nothing to do, 3 refused, 4 rolled back, 5 a person would be needed, 1 failed.

    Rolled back is also what cannot be restored of what runs here: an upgrade would be.

    6: it would commit, but `kupgrade apply` does not begin it here, for what is predicted is over a limit.
    """
    if outcome == "committed" and predicted == "over-budget":
        return ExitCode.OVER_BUDGET
    return {
        "committed": ExitCode.DONE,
        "nothing-to-do": ExitCode.DONE,
        "refused": ExitCode.REFUSED,
        "rolled-back": ExitCode.ROLLED_BACK,
        "hands-off": ExitCode.NEEDS_HUMAN,
    }.get(outcome, ExitCode.FAILED)

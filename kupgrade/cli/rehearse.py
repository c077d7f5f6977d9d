"""`kupgrade rehearse`: a whole kernel upgrade in a virtual host, judged from outside."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kupgrade.cli.composition import composition
from kupgrade.cli.rehearse_here import Choice, this_host_options
from kupgrade.cli.render import timed_progress
from kupgrade.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kupgrade.rehearsal.faults import Fault
    from kupgrade.rehearsal.scenario import Result


_TIMEOUT = 420.0  # seconds


def _ends(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse what no time ever reaches: FloatRange lets NaN pass."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} never comes", context, parameter)
    return value


def _has_room(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a file that cannot be made, before the minutes that it takes to have something to write."""
    if value is not None and not value.parent.is_dir():
        raise click.BadParameter(f"{value}: there is no directory {value.parent}", context, parameter)
    return value


@click.command()
@click.option("--engine", type=click.Choice(["kexec", "spawn"]), default="kexec", show_default=True)
@click.option("--store", type=click.Choice(["auto", "luo", "pmem", "disk"]), default="auto", show_default=True)
@click.option(
    "--from",
    "old",
    show_default="trixie; khokernel-old if --to names a khokernel",
    help="Old kernel: suite, release, prefix or path; khokernel[-PREFIX]: the newest such Debian source (6.19 on),"
    " built here with KHO and LUO; khokernel-old: the newest of the oldest series older than the first --to.",
)
@click.option(
    "--to",
    "new",
    multiple=True,
    show_default="trixie-backports; khokernel if --from names one",
    help="New kernel, as --from; given several times: one upgrade after the other.",
)
@click.option("--memory", type=click.IntRange(1, 65536), default=64, show_default=True, help="MiB of the workload.")
@click.option("--dirty", type=click.IntRange(0, 100), default=0, show_default=True, help="Percent rewritten a second.")
@click.option(
    "--fault",
    "given",
    multiple=True,
    help="e.g. kill-tool@dump:effect, power-cut@cross, panic-new-kernel; several at steps: one upgrade each, in turn.",
)
@click.option("--rollback", default="", metavar="STEP", help="An operator takes it back once STEP is done.")
@click.option(
    "--cycles",
    type=click.IntRange(0, 1000),
    default=0,
    help="So many upgrades are taken back (at --rollback; with spawn else ready-standby) before one that is not.",
)
@click.option(
    "--memory-mode",
    type=click.Choice(["copy", "in-place"]),
    default="copy",
    show_default=True,
    help="Workloads get all memory before they run, or what they touch, and the rest while they run.",
)
@click.option("--connections", type=click.IntRange(1, 64), default=3, show_default=True, help="Of the client outside.")
@click.option(
    "--boot",
    type=click.Choice(["grub", "direct"]),
    default="grub",
    show_default=True,
    help="A boot loader of its own, or QEMU loads the old kernel at every reset (faster).",
)
@click.option("--measured", is_flag=True, help="The virtual host's memory is taken before it starts: truer figures.")
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    callback=_ends,
    show_default="420; four times that for a copy of this host, twenty times without KVM",
    help="Seconds to its end.",
)
@this_host_options
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep logs, journal and result there.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), callback=_has_room, help="Write an HTML report."
)
@click.option("--json", "as_json", is_flag=True, help="Only the result, one JSON object.")
@click.pass_context
def rehearse(
    context: click.Context,
    engine: str,
    store: str,
    old: str | None,
    new: tuple[str, ...],
    memory: int,
    dirty: int,
    given: tuple[str, ...],
    rollback: str,
    cycles: int,
    memory_mode: str,
    connections: int,
    boot: str,
    measured: bool,
    timeout: float | None,
    here: Choice | None,
    keep: Path | None,
    report: Path | None,
    as_json: bool,
) -> int:
    """Upgrade a virtual host's kernel under load and judge the result. Nothing on this machine is touched.

    With --this-host the virtual host is a copy of this one, and it says what would happen here.
    """
    if here is not None:
        from kupgrade.cli import rehearse_here

        return rehearse_here.run(context, here, as_json=as_json)
    from kupgrade.rehearsal import kho_kernel, scenario
    from kupgrade.rehearsal.options import Options

    _check(memory, cycles, alone=not given and len(new) < 2)
    _check_engine(engine, store, cycles, rollback)
    chosen = _faults(given, rollback, engine)
    _check_faults(chosen, store, memory_mode)
    composition(context).require_root("rehearse")
    _check_places(keep, report)
    progress = timed_progress()
    first, wanted = kho_kernel.pair(old, new)
    options = Options(
        engine=engine,
        store=store,
        old=first,
        new=wanted[0],
        further=wanted[1:],
        memory=memory,
        dirty=dirty,
        connections=connections,
        faults=chosen,
        rollback=rollback,
        cycles=cycles,
        memory_mode=memory_mode,
        keep=keep,
        boot=boot,
        measured=measured,
        timeout=timeout or _TIMEOUT,
    )
    result = scenario.rehearse(options, progress)
    _tell(result, as_json)
    return _written(result, keep, report, progress)


def _written(result: Result, keep: Path | None, report: Path | None, progress: Callable[[str], None]) -> int:
    """The exit code, once the evidence and the page lie where they are wanted."""
    from kupgrade.rehearsal import report as reports
    from kupgrade.rehearsal import scenario

    if keep is not None:
        scenario.write_evidence(result, keep)
    if report is not None:
        report.write_text(reports.html(result))
        progress(f"report: {report}")
    return ExitCode.FAILED if result.judged.get("not_made") else exit_code(str(result.judged["outcome"]))


def _check(memory: int, cycles: int, *, alone: bool) -> None:
    """`alone`: one upgrade without a fault. Raises UsageError."""
    if memory > 65536 // 4:
        raise UsageError("The workload is too large for a virtual host here", f"{memory} MiB")
    if cycles and not alone:
        raise UsageError("--cycles goes neither with --fault nor with several kernels", "", "Give one of them")


def _check_engine(engine: str, store: str, cycles: int, rollback: str) -> None:
    """Raises UsageError for what this engine does not do."""
    if engine == "spawn" and store != "auto":
        raise UsageError(f"Images do not go to {store} with the engine spawn", "both kernels see the same memory")
    if cycles and engine != "spawn" and not rollback:
        raise UsageError("--cycles needs --rollback with the engine kexec", "ready-standby is no step of it")


def _check_faults(chosen: tuple[Fault, ...], store: str, memory_mode: str) -> None:
    """Raises UsageError for what would not strike, or strike nobody."""
    from kupgrade.rehearsal import faults

    for each in chosen:
        if each.kind in faults.FILLING and memory_mode != "in-place":
            raise UsageError(f"{each} strikes nobody", "memory is copied", "Add --memory-mode in-place")
        if each.kind in faults.IN_MEMORY and store not in ("auto", "luo"):
            raise UsageError(f"{each} strikes images in memory only", f"they go to {store}", "Give --store luo")


def _check_places(keep: Path | None, report: Path | None) -> None:
    """Raises UsageError where nothing could be written in the end."""
    for option, directory in (("--keep", keep), ("--report", report.absolute().parent if report else None)):
        if directory is None:
            continue
        try:
            if option == "--keep":
                directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            why = error.strerror or str(error)
            raise UsageError(f"{option}: nothing can be written in {directory}", why) from error


def _tell(result: Result, as_json: bool) -> None:
    from kupgrade.rehearsal import report as reports

    if not as_json:
        click.echo(reports.text(result))
    click.echo(json.dumps(dict(result.judged)))


def _faults(given: tuple[str, ...], rollback: str, engine: str) -> tuple[Fault, ...]:
    """What is to be injected. Raises UsageError, for a `rollback` at no step, too."""
    from kupgrade.rehearsal import faults
    from kupgrade.steps import registry

    steps = registry.names()
    if rollback and rollback not in steps:
        raise UsageError(f"{rollback!r} is no step", "", f"Known are {', '.join(steps)}")
    chosen = tuple(faults.parse(each, steps, engine) for each in given)
    if len(chosen) > 1 and not all(each.repeatable for each in chosen):
        raise UsageError("Only faults at steps can follow one another", ", ".join(given), "Rehearse the others alone")
    return chosen


def exit_code(outcome: str) -> ExitCode:
    """0 committed, 3 refused, 4 rolled back, 1 failed."""
    return {
        "committed": ExitCode.DONE,
        "refused": ExitCode.REFUSED,
        "rolled-back": ExitCode.ROLLED_BACK,
    }.get(outcome, ExitCode.FAILED)

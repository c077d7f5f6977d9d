"""Memory that is filled while the workloads run: begun at the restore, asked about, and ended.

Crash windows: whoever asks may be killed and ask again; the ring that fills (page_server.py) is nobody's child. Images
must be there until all is placed: neither are they wiped before, nor is another dump begun.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError, NeedsHumanError
from kupgrade.host import manifest, memory_images
from kupgrade.kernel import userfaultfd
from kupgrade.machine.fill_files import check_now
from kupgrade.machine.fill_log import RECORDS, Field, FillLog, Stage
from kupgrade.machine.fill_roles import Role, lives, plays
from kupgrade.machine.fill_start import start
from kupgrade.machine.page_server import Charge
from kupgrade.machine.places import Places
from kupgrade.steps.base import Figures

PATIENCE = 120.0  # seconds without a byte placed
_POLL = 0.02
_MOST = RECORDS // 2  # mappings: each is a record, and there are other records
_ENDED = "The memory of {} was not filled to the end"


def _log(places: Places, name: str) -> Path:
    return places.memory / f"{name}.log"


def _view(places: Places, name: str) -> Path:
    return places.memory / f"{name}.images"


def begin(places: Places, name: str, directory: Path, cgroup: str, work: Path, *, checked: bool) -> Path:
    """Start what fills a workload; the images from which criu restores the rest.

    Unless all images were `checked`, what criu reads of earlier rounds is summed here, the rest before it is placed.
    Raises KupgradeError when memory cannot be filled in place here; nothing is left then, and all may be copied.
    BadInputError: images are damaged, and nothing may be restored from them.
    """
    if userfaultfd.available() is False:
        raise KupgradeError("Memory cannot be filled in place", "this kernel has no userfaultfd")
    end(places, name)
    memories = tuple(memory_images.memory(directory, pid) for pid in memory_images.processes(directory))
    if sum(len(each.regions) for each in memories) > _MOST:
        raise KupgradeError("Memory cannot be filled in place", f"{name} has too many mappings: more than {_MOST}")
    sums = None if checked else manifest.sums(directory.parents[1])
    if sums is not None:
        left = memory_images.left_to_criu(directory, memories)
        check_now([each for each in left if each.file.parent != directory], sums)
    memory_images.make_view(directory, _view(places, name), memories)
    try:
        start(Charge(name, memories, cgroup, _log(places, name), work, places.root, sums))
    except KupgradeError:
        end(places, name)
        raise
    return _view(places, name)


def end(places: Places, name: str) -> None:
    """End whatever fills a workload. Its processes must have ended, or have everything, before."""
    log = _open(places, name)
    if log is not None:
        while lives(log):  # each replaces another: those that are there now, until none is
            for role in Role:
                if plays(log, role):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(log[role.who], signal.SIGKILL)
        _log(places, name).unlink(missing_ok=True)
    shutil.rmtree(_view(places, name), ignore_errors=True)


def forget(places: Places) -> None:
    """Nothing is left of workloads that have everything. Raises KupgradeError while one has not."""
    if needed := unfilled(places):
        raise KupgradeError("The images are still needed", f"memory of {', '.join(needed)} is not filled yet")
    for path in places.memory.glob("*.images"):
        end(places, path.stem)


def checks(places: Places, name: str) -> bool:
    """Whether a workload is, or was, filled with memory that is summed before it is placed."""
    log = _open(places, name)
    return log is not None and bool(log[Field.CHECKS])


def strike(places: Places, *, everyone: bool) -> None:
    """For a rehearsal: kill whoever serves, or all of the ring."""
    for path in places.memory.glob("*.log"):
        log = _open(places, path.stem)
        for role in Role if everyone else (Role.SERVER,):
            if log is not None and plays(log, role):
                os.kill(log[role.who], signal.SIGKILL)


def _open(places: Places, name: str) -> FillLog | None:
    """None: nothing fills it, nor did."""
    try:
        return FillLog(_log(places, name))
    except KernelError:
        return None


def check(places: Places, names: Sequence[str]) -> None:
    """Raise KupgradeError when a workload will not get all its memory."""
    for name in names:
        log = _open(places, name)
        if log is None or log.stage is Stage.DONE:
            continue
        if log.stage is Stage.FAILED or log.failure:
            raise KupgradeError(_ENDED.format(name), f"{log.failure}; its processes were killed")
        if not lives(log) and not _done(log):  # asked once more: it may have come to its end meanwhile
            raise KupgradeError(_ENDED.format(name), "whoever filled it was killed")


def _done(log: FillLog) -> bool:
    return log.stage is Stage.DONE


def unfilled(places: Places, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Workloads whose images are still needed; without names, all of this kernel."""
    if not names and places.memory.is_dir():
        names = [path.stem for path in places.memory.glob("*.log")]
    logs = ((name, _open(places, name)) for name in names)
    return tuple(name for name, log in logs if log is not None and log.stage < Stage.DONE and lives(log))


def note_thaw(places: Places, names: Sequence[str]) -> None:
    """For the report: what was placed before the workloads run."""
    for name in names:
        if (log := _open(places, name)) is not None and not log[Field.AT_THAW]:
            log[Field.AT_THAW] = log[Field.PLACED]


def await_filled(places: Places, names: Sequence[str], kill: Callable[[str], None]) -> Figures:
    """Wait until all have everything; figures for the report.

    Raises NeedsHumanError when one never will. If nobody was left who could have ended it, `kill` does: it must not
    go on with memory that reads as zeros.
    """
    for name in names:
        placed, since = -1, time.monotonic()
        while (log := _open(places, name)) is not None and log.stage is not Stage.DONE:
            try:
                check(places, (name,))
            except KupgradeError as error:
                kill(name)
                remedy = "Its processes were ended, for memory would have read as zeros: its unit starts it anew"
                raise NeedsHumanError(error.what, error.why, remedy) from error
            if log[Field.PLACED] != placed:
                placed, since = log[Field.PLACED], time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise NeedsHumanError(_ENDED.format(name), f"nothing was placed for {PATIENCE:g} s", "Look at it")
            time.sleep(_POLL)
    return figures(places, names)


def figures(places: Places, names: Sequence[str]) -> Figures:
    """Sums over the workloads that were filled: bytes, faults, and the seconds of the slowest."""
    logs = [log for name in names if (log := _open(places, name)) is not None]
    if not logs:
        return {}
    placed, early = (sum(log[each] for log in logs) for each in (Field.PLACED, Field.AT_THAW))
    return {
        "placed_before_thaw": early,
        "placed_after_thaw": placed - early,
        "faults": sum(log[Field.FAULTS] for log in logs),
        "events": sum(log[Field.EVENTS] for log in logs),
        "restarts": sum(log[Field.RESTARTS] for log in logs),
        "fill_seconds": round(max(log[Field.FILLED_AT] - log[Field.RESTORED_AT] for log in logs) / 1e9, 4),
    }

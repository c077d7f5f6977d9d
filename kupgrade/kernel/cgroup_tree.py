"""Cgroups that a service makes below its own (Delegate=): read, made again, filled (admin-guide/cgroup-v2.rst).

A controller that is applied to one of them is not among what is made again: its limits and accounts are many files,
each with rules of its own. Who owns a cgroup's files does belong to it: a service that is not root needs them to move
its processes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel import proc
from kupgrade.kernel.cgroup import directory
from kupgrade.kernel.libc import read_text, reported, write_text

_BOUNDS = ("cgroup.max.depth", "cgroup.max.descendants")
_HERE = "."


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a file of a cgroup, or (".") its directory."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One cgroup, as it can be made again. `path`: below the service's, empty for that itself; `pids`: in it.

    `owners`: those other than root; `bounds`: contents of files that bound what may be made below it.
    """

    path: str
    pids: tuple[int, ...] = ()
    owners: tuple[Owner, ...] = ()
    mode: int = 0o755
    bounds: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Use:
    """What a cgroup is used for beyond holding processes. `controllers`: applied to it by the one above.

    `kind`: cgroup.type; `frozen`: somebody has frozen it, and not one above.
    """

    path: str
    pids: tuple[int, ...]
    controllers: tuple[str, ...]
    kind: str
    frozen: bool


def cells(cgroup: str, root: Path = Path("/")) -> tuple[Cell, ...]:
    """The cgroup and all below it, parents first. Raises KernelError."""
    top = directory(cgroup, root)
    return tuple(_cell(folder, top) for folder in _folders(top))


def uses(cgroup: str, root: Path = Path("/")) -> tuple[Use, ...]:
    """Of all below the cgroup, parents first. Raises KernelError."""
    top = directory(cgroup, root)
    return tuple(
        Use(
            path=str(folder.relative_to(top)),
            pids=_pids(folder),
            controllers=tuple(read_text(folder.parent / "cgroup.subtree_control").split()),
            kind=read_text(folder / "cgroup.type").strip(),
            frozen=read_text(folder / "cgroup.freeze").strip() == "1",
        )
        for folder in _folders(top)[1:]
    )


def make(cgroup: str, wanted: Iterable[Cell], root: Path = Path("/")) -> None:
    """Have each there, and its processes in it; what is there already is no error. Raises KernelError."""
    top, kept = directory(cgroup, root), tuple(wanted)
    for cell in kept:
        folder = top / cell.path
        with reported("mkdir", folder):
            folder.mkdir(exist_ok=True)
        with reported("chmod", folder):
            folder.chmod(cell.mode)
        for owner in cell.owners:
            _own(folder / owner.name, owner)
        for pid in cell.pids:
            if cell.path or proc.process(pid, root).cgroup != cgroup:
                write_text(folder / "cgroup.procs", str(pid))
    for cell in kept:
        for name, text in cell.bounds:
            write_text(top / cell.path / name, text)


def misplaced(cgroup: str, wanted: Iterable[Cell], root: Path = Path("/")) -> tuple[int, ...]:
    """Processes that are not where they should be. Raises KernelError."""
    top = cgroup.rstrip("/")
    return tuple(
        pid
        for cell in wanted
        for pid in cell.pids
        if proc.process(pid, root).cgroup != (f"{top}/{cell.path}" if cell.path else cgroup)
    )


def _folders(top: Path) -> list[Path]:
    with reported("readdir", top):
        return [top, *sorted(path.parent for path in top.rglob("cgroup.procs") if path.parent != top)]


def _cell(folder: Path, top: Path) -> Cell:
    with reported("stat", folder):
        mode = stat.S_IMODE(folder.stat().st_mode)
        found = [(_HERE, folder.stat()), *((path.name, path.stat()) for path in folder.iterdir() if path.is_file())]
    owners = tuple(Owner(name, each.st_uid, each.st_gid) for name, each in sorted(found) if each.st_uid or each.st_gid)
    bounds = tuple((name, text) for name in _BOUNDS if (text := read_text(folder / name).strip()) != "max")
    path = "" if folder == top else str(folder.relative_to(top))
    return Cell(path, _pids(folder), owners, mode, bounds)


def _pids(folder: Path) -> tuple[int, ...]:
    """None of a threaded cgroup: the one above that is no such has them."""
    try:
        return tuple(sorted(int(word) for word in read_text(folder / "cgroup.procs").split()))
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP:
            return ()
        raise


def _own(path: Path, owner: Owner) -> None:
    """A file that this kernel does not have needs no owner."""
    with reported("chown", path):
        try:
            os.chown(path, owner.uid, owner.gid)
        except FileNotFoundError:
            return

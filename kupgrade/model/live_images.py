"""Images of workloads that run on: what is asked for, what was found, and how a restore of them elsewhere went."""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.model.workload import Store, Watched, Workload


@dataclass(frozen=True, slots=True)
class DumpRequest:
    """One dump. `late`: a directory for files that changed since the copy was begun (`since`, seconds of the epoch) or
    lie in a directory of which it has nothing (`absent`); `reserve`: bytes that stay free; `lock`: a file that whoever
    wants the images holds locked; `rounds`: at most so many before the workloads are stopped.
    """

    store: Store
    workloads: tuple[Workload, ...]
    rounds: int
    late: str
    since: float
    absent: tuple[str, ...]
    reserve: int
    lock: str
    old_release: str
    new_release: str


@dataclass(frozen=True, slots=True)
class Hold:
    """What keeps the workloads from running or being reached meanwhile: written before each of it is done.

    `watched`: units whose watchdogs do not count; `locked`: their TCP ports are; `dumpers`: cgroup of who is at work.
    """

    workloads: tuple[Workload, ...]
    watched: tuple[Watched, ...] = ()
    locked: bool = False
    dumpers: str = ""


@dataclass(frozen=True, slots=True)
class LateFile:
    """A file as it was after the dump, to be laid over the copy. `size`: as the dump saw it; `stored`: its name."""

    path: str
    stored: str
    size: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Dumped:
    """One workload. `error`: empty when it was dumped. `pauses`: seconds that it stood still, the rounds' first.

    `differs`: in words, what of its files is not as the dump saw it.
    """

    name: str
    error: str = ""
    pauses: tuple[float, ...] = ()
    late: tuple[LateFile, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why nothing was dumped; as KupgradeError."""

    what: str
    why: str
    remedy: str
    code: int


@dataclass(frozen=True, slots=True)
class DumpAnswer:
    """Of a dump; `bytes`: of all images."""

    dumped: tuple[Dumped, ...] = ()
    bytes: int = 0
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """`late`: the directory with the late files of `files`; spans in seconds; `settle`: to be well once they run."""

    store: Store
    workloads: tuple[Workload, ...]
    late: str
    files: tuple[LateFile, ...]
    new_release: str
    timeout: float
    settle: float


@dataclass(frozen=True, slots=True)
class Restored:
    """One workload. `error`: empty when it runs as it was; `seconds`: of its restore."""

    name: str
    error: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class LiveSeen:
    """One workload, dumped here and restored there. `restored` None: that was not found out, `error` says why.

    `pauses`: seconds that it stood still here, the last for the dump itself.
    """

    name: str
    restored: bool | None
    error: str = ""
    pauses: tuple[float, ...] = ()
    restore_seconds: float | None = None
    differs: tuple[str, ...] = ()

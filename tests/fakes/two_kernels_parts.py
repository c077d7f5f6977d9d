"""Parts of the machine with two kernels: its ends, its second thread of control, /run, the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kupgrade.model.record import Record
from tests.fakes.endings import ADMIN_PANIC, Behaviour, EndError, Kill


class OldPanicked(EndError):
    """The old kernel is dead; whether the machine restarts says its kernel.panic."""


class OldLeft(EndError):
    """The old kernel has given everything and ended."""


class NewServes(EndError):
    """The child has ended after the commit; the old kernel is still there."""


class Stuck(EndError):
    """Nobody does anything any more."""


@dataclass(frozen=True)
class SpawnBehaviour(Behaviour):
    """What the host and its kernels are like, beyond a host for kexec."""

    silent: bool = False  # the new kernel never says hello
    admin_panic: int = ADMIN_PANIC  # kernel.panic of the old kernel
    retire_fails: bool = False
    retire_failures: int = 0  # until it does, each after the buses have passed
    torn: bool = False  # the kernel's merge is no single moment
    redo: bool = False  # so what is merged is logged first
    lag: int = 0  # ticks that the child still makes between the decision to stop its kernel and the end of that
    gap: int = 0  # ticks that it makes until a killed worker is there again


class Process:
    """The child: a thread that moves only in `resume`, until it pauses or ends.

    One of the two moves at a time, so that a lock which the other one opens is enough, and several times as fast as
    what threading builds out of locks.
    """

    def __init__(self, body: Callable[[], None]) -> None:
        self._body = body
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._doomed = False
        self.over = self.killed = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._doomed:
                self._body()
        except EndError:
            self.killed = True
        self.over = True
        self._back.release()

    def resume(self) -> None:
        self._go.release()
        self._back.acquire()

    def pause(self) -> None:
        """By the child itself."""
        if not self._doomed:
            self._back.release()
            self._go.acquire()
        if self._doomed:
            raise Kill

    def kill(self) -> None:
        """SIGKILL, or the end of its kernel."""
        if not self.over:
            self._doomed = self.killed = True
            self.resume()
        self.thread.join()


class RunDirectory:
    """A /run: it ends with its kernel."""

    def __init__(self, written: Callable[[str, str], None] | None = None) -> None:
        self.files: dict[str, str] = {}
        self.written = written

    def __truediv__(self, name: str) -> RunFile:
        return RunFile(self, name)

    def mkdir(self, **_: object) -> None:
        pass


@dataclass
class RunFile:
    """One file there, as much of a Path as is used."""

    parent: RunDirectory
    name: str

    def exists(self) -> bool:
        return self.name in self.parent.files

    def read_text(self) -> str:
        try:
            return self.parent.files[self.name]
        except KeyError:
            raise FileNotFoundError(self.name) from None

    def write_text(self, text: str) -> None:
        self.parent.files[self.name] = text
        if self.parent.written is not None:
            self.parent.written(self.name, text)

    def touch(self) -> None:
        self.write_text("")

    def unlink(self, *, missing_ok: bool = False) -> None:
        self.parent.files.pop(self.name, None)

    def with_suffix(self, suffix: str) -> RunFile:
        return RunFile(self.parent, self.name.rpartition(".")[0] + suffix)

    def replace(self, target: RunFile) -> None:
        self.parent.files[target.name] = self.parent.files.pop(self.name)


@dataclass
class Disk:
    """The root file system."""

    records: list[Record]
    files: dict[str, int]
    stored_default: str | None
    lock_file: bool = False
    holds: set[str] = field(default_factory=set)
    down: set[str] = field(default_factory=set)
    initrds: dict[str, int] = field(default_factory=dict)
    built: set[str] = field(default_factory=set)
    torn: bool = False
    durable: int = -1  # how many records outlive a crash; a copy of the disk is made of what was flushed

    def __post_init__(self) -> None:
        if self.durable < 0:
            self.sync()

    def sync(self) -> None:
        self.durable = len(self.records)

    def crash(self) -> None:
        """What was not flushed is lost."""
        del self.records[self.durable :]

    def copy(self) -> Disk:
        return Disk(
            list(self.records), dict(self.files), self.stored_default, self.lock_file, set(self.holds),
            set(self.down), dict(self.initrds), set(self.built), self.torn,
        )  # fmt: skip

"""A small process tree is dumped and restored in the new kernel, before any workload depends on that.

It shows that this kernel restores: criu's own check asks for features, and restores nothing. And what the restore of
the workloads will run is in memory then, translated and looked up where that takes time, so their blackout is shorter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host.command import environment
from kupgrade.host.criu import Criu, DumpOptions, RestoreOptions

PLACE = Path("/run/kupgrade/trial")
PATIENCE = 20.0  # seconds in which the tree has to begin, and to go on after it was restored
_POLL = 0.01
_BEAT = "beat"

# What is restored: two processes, a thread, memory, an open file, a pipe and an established TCP connection. For each
# byte that makes the whole round, through the pipe and the connection, the file grows by one.
_TREE = """
import _socket, _thread, os, sys, time
beat = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
memory = bytearray(os.urandom(1 << 18))
kept = hash(bytes(memory))
listener = _socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(1)
near = _socket.socket()
near.connect(listener.getsockname())
far = _socket.socket(fileno=listener._accept()[0])
reading, writing = os.pipe()
_thread.start_new_thread(time.sleep, (3600,))
if os.fork() == 0:
    os.close(writing)
    while data := os.read(reading, 1):
        near.send(data)
    os._exit(0)
while True:
    os.write(writing, b"x")
    if far.recv(1) == b"x" and hash(bytes(memory)) == kept:
        os.write(beat, b"x")
    time.sleep(0.02)
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """How it went: `seconds` of the restore. `unmade`: why there was nothing to restore; no word against the kernel."""

    seconds: float = 0.0
    unmade: str = ""


def run(place: Path = PLACE, criu: Criu | None = None, patience: float = PATIENCE) -> Trial:
    """Dump and restore it. Nothing is left of it, nor of one that was cut short.

    Raises KupgradeError when this kernel does not restore it as it was. To dump is not asked of this kernel: if that
    fails the trial is not made.
    """
    criu = criu or Criu()
    _clear(place)
    try:
        images = place / "images"
        images.mkdir(mode=0o700, parents=True)
        try:
            with _tree(place) as child:
                _await_beats(place, 1, patience)
                criu.dump(DumpOptions(child.pid, images, leave_running=False))
        except (KupgradeError, OSError) as error:
            return Trial(unmade=str(error))
        before = _beats(place)
        begun = time.monotonic()
        root = criu.restore(RestoreOptions(images, {}, place, leave_stopped=False))
        seconds = time.monotonic() - begun
        if root != child.pid:
            raise KupgradeError("A process that was restored for a trial has another PID", f"{root}, not {child.pid}")
        _await_beats(place, before + 1, patience)
    finally:
        _clear(place)
    return Trial(seconds)


@contextlib.contextmanager
def _tree(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """It runs in a session of its own, and is gone at the end: dumped, or killed."""
    null = subprocess.DEVNULL
    argv = [sys.executable, "-ISc", _TREE, str(place / _BEAT)]
    child = subprocess.Popen(
        argv, env=environment(), stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True
    )
    try:
        yield child
    except BaseException:
        _kill(place)
        raise
    finally:
        child.wait()


def _beats(place: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (place / _BEAT).stat().st_size
    return 0


def _await_beats(place: Path, wanted: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while _beats(place) < wanted:
        if time.monotonic() > deadline:
            why = f"its file has {_beats(place)} of {wanted} bytes after {patience:g} s"
            raise KupgradeError("What the trial restores does not run as it did", why)
        time.sleep(_POLL)


def _clear(place: Path) -> None:
    """Kill what is left of the tree, if any, and remove its files."""
    _kill(place)
    shutil.rmtree(place, ignore_errors=True)


def _kill(place: Path) -> None:
    """All processes of a tree with its files at `place`, whoever started them: they are known by their arguments."""
    words = f"{_TREE}\0{place / _BEAT}\0".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().endswith(words):
                os.kill(int(entry.name), signal.SIGKILL)

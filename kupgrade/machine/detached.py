"""Processes that outlive whoever starts them: nobody's child, in no unit, with nothing open, hard to end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_EXPENDABLE_LAST = "-1000"  # oom_score_adj: never
_IGNORED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE)


def start(root: Path, name: str, work: Callable[[int], int]) -> bytes:
    """Fork a process that does `work`, and come back when it says how it begins: its answer, empty for none.

    `work` gets the descriptor to write the answer to, which it closes when it has; what it returns is the exit status.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _detach(root, name, work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return answer


def _detach(root: Path, name: str, work: Callable[[int], int], writer: int) -> None:
    """In the child: a process of nobody's, then the work. Never returns."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        # What the agent has open, above all the journal's lock, must not outlive it here.
        os.closerange(3, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        if null > 1:
            os.close(null)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        _leave_unit(root)
        code = work(writer)
    except BaseException as error:  # a forked process must never run on as its parent
        sys.stderr.write(f"<3>kupgrade: {name}: {type(error).__name__}: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


def _leave_unit(root: Path) -> None:
    """Out of the agent's unit, which ends with the agent; and the last one that is ended for want of memory."""
    for path, text in (
        (root / "proc/self/oom_score_adj", _EXPENDABLE_LAST),
        (root / "sys/fs/cgroup/cgroup.procs", str(os.getpid())),
    ):
        with contextlib.suppress(OSError):  # before systemd mounts it there is no unit to leave
            path.write_text(text)

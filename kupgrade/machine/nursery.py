"""Restorers that are born ready: what a restore imports, and criu's look at a new kernel, take longer than the restore.

The nursery is a child that the agent of a boot makes as soon as it has imported what both need, so that both go on at
once. Each restorer is then a fork of it, asked for over a socket. It ends with the agent, whose end of the socket is
closed then; a restorer that was given its request by then goes on, like any.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import criu
from kupgrade.host.command import environment

_MESSAGE = 4096  # bytes; a name and a token are far shorter


_ours: list[socket.socket] = []  # our end, while there is a nursery


def begin() -> None:
    """Make it. Without one (no memory, no PID) restorers are started one by one, and are ready later."""
    from kupgrade.machine import restorer

    end()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        return
    if pid:
        theirs.close()
        _ours.append(ours)
        return
    try:
        ours.close()
        os.setsid()
        _close_others(theirs.fileno())
        _serve(theirs, restorer.serve)
    finally:
        os._exit(0)


def ask(name: str, token: str, patience: float) -> bool:
    """Have a restorer wait for its request (seconds); whether there is a nursery that was told."""
    with contextlib.suppress(OSError):
        for nursery in _ours:
            nursery.send(json.dumps([name, token, patience]).encode())
            return True
    return False


def end() -> None:
    """No more restorers are asked for; one that has no request yet gives up."""
    while _ours:
        _ours.pop().close()  # it ends by itself, and is not waited for: whoever calls is in the blackout


def _close_others(fd: int) -> None:
    """What the agent has open is its own: a lock that passes on when it ends."""
    for each in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if each > 2 and each != fd:
            with contextlib.suppress(OSError):  # the directory that was read
                os.close(each)


def _serve(asked: socket.socket, restore: Callable[[str, str, float, int], int]) -> None:
    env = environment()
    os.environ.clear()
    os.environ.update(env)
    # What is wrong with criu is told by the restore itself.
    null, probing = subprocess.DEVNULL, None
    with contextlib.suppress(OSError):
        probing = subprocess.Popen(["criu", "check"], stdin=null, stdout=null, stderr=null)
    with contextlib.suppress(KupgradeError):
        criu.preload()
    if probing is not None:
        probing.wait()
    nursery = os.getpid()
    while message := asked.recv(_MESSAGE):
        name, token, patience = json.loads(message)
        if os.fork() == 0:
            asked.close()
            os.setsid()
            os._exit(restore(str(name), str(token), time.monotonic() + float(patience), nursery))

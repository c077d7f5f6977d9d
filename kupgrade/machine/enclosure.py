"""The sandbox of a service that is restored before systemd runs: made as it was, by a process that then holds it.

criu is run inside, as it is inside of what systemd makes; once the service's processes are there the holder ends. The
unit's start process gets another sandbox from systemd later, and leaves it again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.kernel import mount_maker
from kupgrade.kernel.libc import Libc
from kupgrade.kernel.mount_layout import Layout
from kupgrade.machine.new_root import SYSROOT

CLONE_NEWNS, CLONE_NEWUTS = 0x00020000, 0x04000000  # include/uapi/linux/sched.h
_KINDS = {"mnt": CLONE_NEWNS, "uts": CLONE_NEWUTS}
_MADE = b"made"


def prepare(layouts: Iterable[Layout]) -> None:
    """What is of all: the host's file systems in memory, and that later mounts come into what is made from here.

    Raises KernelError.
    """
    libc = Libc()
    mount_maker.share(libc)
    for each in layouts:
        mount_maker.mount_memory(libc, each)


@contextlib.contextmanager
def made(layout: Layout, kinds: Sequence[str], top: Path = SYSROOT) -> Iterator[int]:
    """The PID of a process in namespaces of these kinds, with these mounts, as long as the context lasts.

    `top`: where the host's root file system is mounted, in this kernel's own root. Raises KupgradeError.
    """
    told, tell = os.pipe()
    held, hold = os.pipe()  # its end of it is at its end when we are
    pid = os.fork()
    if pid == 0:
        os.close(told)
        os.close(hold)
        _hold(layout, kinds, top, tell, held)
    os.close(tell)
    os.close(held)
    try:
        with os.fdopen(told, "rb") as answer:
            said = answer.read()
        if said != _MADE:
            raise KupgradeError("A sandbox could not be made again", said.decode(errors="replace") or "its maker died")
        yield pid
    finally:
        os.close(hold)
        os.kill(pid, signal.SIGKILL)  # nothing is lost with it, and whatever keeps it must not keep us
        os.waitpid(pid, 0)


def _hold(layout: Layout, kinds: Sequence[str], top: Path, tell: int, held: int) -> None:
    """In the child: make, tell, wait. Never returns."""
    try:
        try:
            _make(Libc(), layout, kinds, top)
            said = _MADE
        except Exception as error:  # whatever it is: somebody waits
            said = str(error).encode() or repr(error).encode()
        os.write(tell, said)
        os.close(tell)
        os.read(held, 1)
    finally:
        os._exit(0)


def _make(libc: Libc, layout: Layout, kinds: Sequence[str], top: Path) -> None:
    libc.unshare(sum(_KINDS[kind] for kind in kinds))
    if "uts" in kinds and layout.hostname:
        socket.sethostname(layout.hostname)
    if "mnt" not in kinds:
        return
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    libc.setns(own, CLONE_NEWNS)  # our root is that of the namespace now, and no more the directory we had for one
    os.close(own)
    mount_maker.make_root(libc, top)
    mount_maker.lay(libc, layout)

"""A hook in a kernel that waits beside another one: what is typed on its console strikes it. Stdlib only.

The rehearsal has the standby agent import it. Words: panic-new-kernel, hang-new-kernel, kill-agent,
channel-corrupted. A kernel that has the agent's place already writes them to the FIFO.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import mmap
import os
import re
import select
import signal
import time
from collections.abc import Callable

FIFO = "/run/kupgrade/fault.fifo"
# The ring new to old of the window: behind three pages and the other ring, eight slots of 64 KiB each way.
RING, SLOT, SLOTS, FRAME = 3 * 4096 + 8 * 65536, 65536, 8, 48
CORRUPT_SECONDS = 30.0


def cmdline() -> str:
    with open("/proc/cmdline") as file:
        return file.read()


def panic() -> None:
    with open("/proc/sysrq-trigger", "w") as file:
        file.write("c")


def hang() -> None:
    """All CPUs to processes that no other can take them from."""
    with open("/proc/sys/kernel/sched_rt_runtime_us", "w") as file:
        file.write("-1")
    # Newer kernels keep a twentieth for everybody else (kernel/sched/deadline.c, fair_server).
    os.makedirs("/fault-debug", exist_ok=True)
    ctypes.CDLL(None).mount(b"none", b"/fault-debug", b"debugfs", 0, None)
    for name in glob.glob("/fault-debug/sched/*_server/cpu*/runtime"):
        with contextlib.suppress(OSError), open(name, "w") as file:
            file.write("0")
    for cpu in os.sched_getaffinity(0):
        if os.fork() == 0:
            os.sched_setaffinity(0, {cpu})
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
            while True:
                pass


def kill_agent() -> None:
    """The agent: not its keeper, nor its heartbeat or what carries the upgrade on, which are children of it."""
    parents = {pid: parent_of(pid) for pid in ours()}
    for pid, parent in parents.items():
        if parent in parents and parents[parent] not in parents:
            os.kill(pid, signal.SIGKILL)


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def ours() -> set[int]:
    """The processes that were started as the agent's program, this one aside."""
    found = set()
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if b"kupgrade.standby" in words:
            found.add(int(path.split("/")[2]))
    return found - {os.getpid()}


def corrupt() -> None:
    """Every answer on its way is damaged, for a while."""
    match = re.search(r"kupgrade\.window=(?:0x)?([0-9a-fA-F]+):", cmdline())
    assert match, "this kernel was not started beside another one"
    device = os.open("/dev/kspawn", os.O_RDWR | os.O_CLOEXEC)
    window = mmap.mmap(device, RING + SLOT * SLOTS, offset=int(match[1], 16))
    deadline = time.monotonic() + CORRUPT_SECONDS
    while time.monotonic() < deadline:
        for slot in range(SLOTS):
            at = RING + slot * SLOT + FRAME
            window[at : at + 16] = os.urandom(16)
        time.sleep(0.0002)
    window.close()
    os.close(device)


STRIKES: dict[str, Callable[[], None]] = {
    "panic-new-kernel": panic,
    "hang-new-kernel": hang,
    "kill-agent": kill_agent,
    "channel-corrupted": corrupt,
    "panic-old-kernel": lambda: None,  # that is another one: the rehearsal reads the word on the console
}


def listen() -> None:
    """Words from console and FIFO, for ever."""
    os.mkfifo(FIFO)
    inputs = [os.open(FIFO, os.O_RDWR | os.O_CLOEXEC)]
    match = re.search(r"console=(ttyS\d+)", cmdline())
    if match:
        inputs.append(os.open(f"/dev/{match[1]}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    while True:
        for ready in select.select(inputs, [], [])[0]:
            for word in os.read(ready, 4096).decode(errors="replace").split():
                if word in STRIKES:
                    os.write(inputs[-1], f"fault: {word}\n".encode())
                    STRIKES[word]()


def plant() -> None:
    """Fork the listener, once in this kernel's life."""
    if "kupgrade.window=" not in cmdline() or os.path.exists(FIFO) or os.fork() != 0:
        return
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(15, b"fault-hook", 0, 0, 0)
        listen()
    finally:
        os._exit(1)


plant()

"""Makes a machine that does not give what an upgrade wants of it: `refuse.py cpu|memory`. Stays until it is killed.

Says `ready` when it is so. Stdlib only.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time

SCHED_SETATTR = 314  # on x86-64
SCHED_DEADLINE = 6
SECOND = 1_000_000_000
F_SETPIPE_SZ = 1031
PIPE = 1 << 20
HUGE = 2 << 20
SPARE_KIB = 200 << 10  # left free while memory is filled
LEAST_KIB = 150 << 10  # left free in the end: with less the kernel, whose memory is in pieces, ends processes
HOLE_EACH = 8  # one of so many huge pages: eight for each block of 128 MiB, for not each of them is filled


def hold_cpus() -> None:
    """Reserve more CPU time than one CPU less could give: taking any offline fails with EBUSY."""
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(os.cpu_count() or 1):
        if os.fork() == 0:
            runtime = SECOND * 85 // 100
            attributes = struct.pack("<IIQiIQQQ", 48, SCHED_DEADLINE, 0, 0, 0, runtime, SECOND, SECOND)
            if libc.syscall(SCHED_SETATTR, 0, attributes, 0) != 0:
                print(f"sched_setattr: {os.strerror(ctypes.get_errno())}", flush=True)
            signal.pause()
            os._exit(0)
    time.sleep(0.5)


def free_kib() -> int:
    with open("/proc/meminfo") as file:
        return int(dict(line.split(":", 1) for line in file)["MemFree"].split()[0])


def hold_pipe() -> None:
    """A pipe's worth of pages that stay where they are."""
    _, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, PIPE)
    os.set_blocking(writer, False)
    os.write(writer, bytes(PIPE))


def hold_memory() -> None:
    """Fill memory; make holes everywhere, one by one, and fill them with what the kernel cannot move; then let go."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16, 1 << 16))
    size = (free_kib() - SPARE_KIB) * 1024 // HUGE * HUGE
    filling = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    filling.madvise(mmap.MADV_HUGEPAGE)
    block = bytes(HUGE)
    for offset in range(0, size, HUGE):
        filling[offset : offset + HUGE] = block
    while free_kib() > LEAST_KIB:
        hold_pipe()
    holes = [*range(HUGE, size - HUGE, HOLE_EACH * HUGE)]
    random.shuffle(holes)
    for offset in holes:
        filling.madvise(mmap.MADV_DONTNEED, offset, HUGE)
        for _ in range(HUGE // PIPE):
            hold_pipe()
    filling.close()


def main() -> None:
    {"cpu": hold_cpus, "memory": hold_memory}[sys.argv[1]]()
    print("ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()

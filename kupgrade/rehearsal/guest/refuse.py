"""Makes a machine that does not give what an upgrade wants of it: `refuse.py cpu|memory`. Stays until it is killed.

Says `ready` when it is so. Stdlib only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
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
SPARE_KIB = 400 << 10  # left free while memory is filled
KEEP_EACH = 48  # of so many pipes one stays, so that every block of 128 MiB holds one that cannot be moved


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


def hold_memory() -> None:
    """Fill memory with pipes and drop most of them again: what stays is everywhere, and the kernel cannot move it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 17, 1 << 17))
    pipes = []
    data = bytes(PIPE)
    while free_kib() > SPARE_KIB:
        for _ in range(8):
            reader, writer = os.pipe()
            fcntl.fcntl(writer, F_SETPIPE_SZ, PIPE)
            os.set_blocking(writer, False)
            os.write(writer, data)
            pipes.append((reader, writer))
    for number, ends in enumerate(pipes):
        if number % KEEP_EACH:
            os.close(ends[0])
            os.close(ends[1])


def main() -> None:
    {"cpu": hold_cpus, "memory": hold_memory}[sys.argv[1]]()
    print("ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()

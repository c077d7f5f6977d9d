"""Free memory is written once, while nobody waits: what a hypervisor gives only when it is touched is here then.

The restore of large workloads would else wait for it in the blackout. Memory that is here already is merely cleared.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from kupgrade.standby.heir import memory_facts

PATIENCE = 30.0  # seconds at most
PORTION = 64 << 20  # bytes
_RESERVE = 8  # one part in so many of what is free stays untouched
_OOM_FIRST = "1000"  # should memory get short this process ends, and no other (proc_pid_oom_score_adj(5))


def free_memory(root: Path = Path("/"), patience: float = PATIENCE) -> None:
    """Take it in a child, which gives it back by its end. Best effort: without it the restore takes longer, no more."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        (root / "proc/self/oom_score_adj").write_text(_OOM_FIRST)
        touch(memory_facts(root).get("MemFree", 0) * (_RESERVE - 1) // _RESERVE, patience)
    finally:
        os._exit(0)


def touch(wanted: int, patience: float = PATIENCE) -> int:
    """Take up to `wanted` bytes, for as long as that takes at most `patience` seconds; bytes that were taken."""
    deadline, held = time.monotonic() + patience, list[mmap.mmap]()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    while (len(held) + 1) * PORTION <= wanted and time.monotonic() < deadline:
        held.append(mmap.mmap(-1, PORTION, flags=flags))
    taken = len(held) * PORTION
    for each in held:
        each.close()
    return taken

"""Who gets which PIDs."""

from __future__ import annotations

from collections.abc import Collection

MARGIN = 1000
WINDOW = 20000  # PIDs that a boot may use up before the workloads are restored
FIRST = 1000
LIMIT = 1 << 22  # PID_MAX_LIMIT of 64-bit kernels
ROOM = 32768  # above the floor, without which the new kernel's first process does not take it (host/early_init.py)


def pid_floor(workload_pids: Collection[int], pid_max: int) -> int:
    """The PID from which the new kernel's user space starts, so that none of `workload_pids` is taken.

    The window [floor, floor + WINDOW) holds no workload PID. Above all of them where there is room below the largest
    possible pid_max (4194304 on 64 bit); else the first gap that is wide enough. Raises ValueError when there is none.
    """
    highest = max(pid_max, LIMIT) - ROOM
    taken = sorted(set(workload_pids))
    above = (taken[-1] if taken else 0) + MARGIN
    if max(above, FIRST) <= highest:
        return max(above, FIRST)
    floor = FIRST
    for pid in taken:
        if pid - floor >= WINDOW and floor <= highest:
            return floor
        floor = max(floor, pid + 1)
    raise ValueError("no gap between the workloads' PIDs is wide enough")

"""Processes that share one table of descriptors: clone(2), CLONE_FILES (include/uapi/linux/sched.h).

What one of them opens the others have, and keep when it is killed.
"""

from __future__ import annotations

import ctypes
import platform
import signal

from kupgrade.errors import KernelError

_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}  # syscall_64.tbl; asm-generic/unistd.h
_CLONE_FILES, _CLONE_PARENT_SETTID = 0x400, 0x100000


def clone(place: int) -> int:
    """fork(2), but with one table of descriptors for both: 0 in the child. Raises KernelError.

    `place`: where the kernel writes the child's PID before it runs. Python is told before and after, as with its own
    fork; this process has one thread.
    """
    number = _CLONE[platform.machine()]
    python = ctypes.pythonapi
    call = ctypes.PyDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    python.PyOS_BeforeFork()
    flags = _CLONE_FILES | _CLONE_PARENT_SETTID | signal.SIGCHLD
    pid = int(call(*(ctypes.c_long(each) for each in (number, flags, 0, place, 0, 0))))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise KernelError("clone", "", ctypes.get_errno())
    return pid

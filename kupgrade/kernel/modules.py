"""Kernel modules, by system call alone: it works when no file can be read any more.

Source: delete_module(2), arch/x86/entry/syscalls/syscall_64.tbl. Loading is modprobe's, which knows what needs what.
"""

from __future__ import annotations

import ctypes
import os
import platform

from kupgrade.errors import KernelError

_DELETE_MODULE = {"x86_64": 176, "aarch64": 106, "riscv64": 106}


def unload(name: str) -> None:
    """Unload a module. Raises KernelError: ENOENT (not loaded, or built in), EAGAIN (in use), EPERM."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    number = ctypes.c_long(_DELETE_MODULE[platform.machine()])
    if call(number, ctypes.c_char_p(name.encode()), ctypes.c_long(os.O_NONBLOCK)) != 0:
        raise KernelError("delete_module", name, ctypes.get_errno(), "End what uses it")

"""System calls that Python's standard library lacks, and errno turned into KernelError.

Only the composition root makes a `Libc`: whoever holds none cannot reboot. The wrappers in kernel/ take the
calls they need as a Protocol, so tests pass a recorder.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kupgrade.errors import KernelError

# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h (aarch64, riscv64). No other
# architecture is tried: a wrong number would be another system call.
KEXEC_FILE_LOAD = {"x86_64": 320, "aarch64": 294, "riscv64": 294}

# include/uapi/asm-generic/unistd.h; the same number in syscall_64.tbl
PIDFD_GETFD = 438

# include/uapi/linux/reboot.h; glibc's reboot() adds the magic numbers
REBOOT_RESTART = 0x01234567
REBOOT_KEXEC = 0x45584543

# include/uapi/asm-generic/mman.h
MCL_CURRENT, MCL_FUTURE = 1, 2

# include/uapi/linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int); the same on all three architectures
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878


@contextmanager
def reported(call: str, path: Path | str = "", remedy: str = "") -> Iterator[None]:
    """Turn an OSError inside into KernelError(call, path, errno, remedy)."""
    try:
        yield
    except OSError as error:
        raise KernelError(call, str(path), error.errno or errno.EIO, remedy) from error


def read_text(path: Path) -> str:
    """The text of a kernel file; bytes that are not UTF-8 survive as surrogates, to be passed on."""
    with reported("read", path):
        return path.read_text(encoding="utf-8", errors="surrogateescape")


def write_text(path: Path, text: str) -> None:
    """Write a kernel file in one write(2), without creating it."""
    with reported("write", path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode(errors="surrogateescape"))
        finally:
            os.close(fd)


class Libc:
    """The real system calls. Every method raises KernelError."""

    __slots__ = ("_c", "_kexec_file_load")

    def __init__(self, machine: str | None = None) -> None:
        machine = machine or platform.machine()
        if machine not in KEXEC_FILE_LOAD:
            raise KernelError(
                "syscall",
                machine,
                errno.ENOSYS,
                f"System call numbers are known for {', '.join(KEXEC_FILE_LOAD)} only",
            )
        self._kexec_file_load = KEXEC_FILE_LOAD[machine]
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.syscall.restype = ctypes.c_long
        self._c.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
        self._c.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
        self._c.reboot.argtypes = [ctypes.c_uint]
        self._c.setns.argtypes = [ctypes.c_int, ctypes.c_int]
        self._c.unshare.argtypes = [ctypes.c_int]
        self._c.syncfs.argtypes = [ctypes.c_int]

    def _failed(self, call: str, path: str = "") -> KernelError:
        return KernelError(call, path, ctypes.get_errno())

    def kexec_file_load(self, kernel_fd: int, initrd_fd: int, cmdline: bytes, flags: int) -> None:
        """kexec_file_load(2). `cmdline` has no NUL; `initrd_fd` counts only without NO_INITRAMFS."""
        result = self._c.syscall(
            ctypes.c_long(self._kexec_file_load),
            ctypes.c_long(kernel_fd),
            ctypes.c_long(initrd_fd),
            ctypes.c_ulong(len(cmdline) + 1),
            ctypes.c_char_p(cmdline),
            ctypes.c_ulong(flags),
        )
        if result != 0:
            raise self._failed("kexec_file_load")

    def reboot(self, command: int) -> None:
        """reboot(2) at once: nothing is stopped, synced or unmounted. Returns only by an error."""
        if self._c.reboot(command) != 0:
            raise self._failed("reboot")

    def sync(self) -> None:
        """Write back all file systems."""
        os.sync()

    def syncfs(self, path: Path) -> None:
        """Write back the file system that holds `path`; unlike sync(2) it reports write errors."""
        with reported("open", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self._c.syncfs(fd) != 0:
                raise self._failed("syncfs", str(path))
        finally:
            os.close(fd)

    def mount(self, source: str, target: Path, fstype: str, flags: int = 0, options: str = "") -> None:
        """mount(2)."""
        words = (source.encode(), os.fsencode(target), fstype.encode())
        if self._c.mount(*words, flags, options.encode() or None) != 0:
            raise self._failed("mount", str(target))

    def umount2(self, target: Path, flags: int = 0) -> None:
        """umount2(2)."""
        if self._c.umount2(os.fsencode(target), flags) != 0:
            raise self._failed("umount2", str(target))

    def setns(self, fd: int, nstype: int) -> None:
        """Move the calling thread into the namespace `fd` refers to, setns(2)."""
        if self._c.setns(fd, nstype) != 0:
            raise self._failed("setns")

    def unshare(self, flags: int) -> None:
        """New namespaces for the calling process, unshare(2)."""
        if self._c.unshare(flags) != 0:
            raise self._failed("unshare")

    def lock_memory(self) -> None:
        """mlockall(2) of all pages, now and later: this process needs no disk to run on."""
        if self._c.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
            raise self._failed("mlockall")

    def unlock_memory(self) -> None:
        """munlockall(2)."""
        if self._c.munlockall() != 0:
            raise self._failed("munlockall")

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """ioctl(2) with an int passed by reference; returns the int that the kernel left there."""
        buffer = bytearray(argument.to_bytes(4, "little", signed=True))
        with reported("ioctl", f"request {request:#x}"):
            fcntl.ioctl(fd, request, buffer)
        return int.from_bytes(buffer, "little", signed=True)

    def pidfd_getfd(self, pidfd: int, number: int) -> int:
        """A duplicate of descriptor `number` of another process, pidfd_getfd(2); the caller closes it."""
        result = self._c.syscall(
            ctypes.c_long(PIDFD_GETFD), ctypes.c_long(pidfd), ctypes.c_long(number), ctypes.c_long(0)
        )
        if result < 0:
            raise self._failed("pidfd_getfd", f"descriptor {number}")
        return int(result)

    def pidfd_open(self, pid: int) -> int:
        """A descriptor that refers to the process for ever, pidfd_open(2); the caller closes it."""
        with reported("pidfd_open", f"pid {pid}"):
            return os.pidfd_open(pid)

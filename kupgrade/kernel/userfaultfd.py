"""Memory that is filled when it is touched: userfaultfd(2), ioctl_userfaultfd(2), include/uapi/linux/userfaultfd.h.

A descriptor belongs to one address space; ranges registered with it wait for pages instead of reading as zeros. When
the last copy of the descriptor is closed the registrations end, and what is missing then reads as zeros.

Events: a process that forks, unmaps, moves or discards waits until its event was read, and no page can be placed
meanwhile (EAGAIN): whoever reads every event before it places anything cannot put a page where it does not belong.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import mmap
import os
import platform
import struct
from dataclasses import dataclass

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import reported

# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h
SYSCALL = {"x86_64": 323, "aarch64": 282, "riscv64": 282}
PAGE = mmap.PAGESIZE
API = 0xAA
MESSAGE_SIZE = 32
MODE_MISSING = 1  # UFFDIO_REGISTER_MODE_MISSING
LINK = "anon_inode:[userfaultfd]"  # what the descriptor's link in /proc/PID/fd says

_UFFDIO_API = 0xC018AA3F  # _IOWR(0xAA, 0x3F, struct uffdio_api)
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_UNREGISTER = 0x8010AA01
_UFFDIO_WAKE = 0x8010AA02
_UFFDIO_COPY = 0xC028AA03
_UFFDIO_ZEROPAGE = 0xC020AA04
_MADV_POPULATE_READ = 22  # include/uapi/asm-generic/mman-common.h, Linux 5.14
_MAP_FAILED = ctypes.c_void_p(-1).value

_WORDS = struct.Struct("=BBHIQQQ")  # struct uffd_msg: event, three reserved, then the union's words


class Feature(enum.IntFlag):
    """UFFD_FEATURE_*: events that are wanted."""

    FORK = 1 << 1
    REMAP = 1 << 2
    REMOVE = 1 << 3
    UNMAP = 1 << 6


NEEDED = Feature.FORK | Feature.REMAP | Feature.REMOVE | Feature.UNMAP


class Event(enum.IntEnum):
    """UFFD_EVENT_*."""

    PAGEFAULT = 0x12
    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


@dataclass(frozen=True, slots=True)
class Message:
    """What happened. `first`, `second`, `third` by event, addresses and lengths in bytes:

    PAGEFAULT: flags, address. FORK: the child's descriptor. REMAP: from, to, length. REMOVE, UNMAP: start, end.
    """

    event: Event
    first: int
    second: int
    third: int


class GoneError(Exception):
    """The address space has ended (ESRCH)."""


class AgainError(Exception):
    """An event waits to be read (EAGAIN): nothing is placed before that."""


class Libc:
    """The calls, by ctypes: an ioctl that fails leaves an answer in its structure, too."""

    def __init__(self) -> None:
        c = ctypes.CDLL(None, use_errno=True)
        c.syscall.restype = ctypes.c_long
        c.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        c.mmap.restype = ctypes.c_void_p
        c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.c = c

    def ioctl(self, fd: int, request: int, *words: int) -> tuple[int, tuple[int, ...]]:
        """The error number (0: none) and the structure's 64-bit words as the kernel left them, as signed numbers."""
        block = (ctypes.c_int64 * len(words))(*(ctypes.c_int64(word).value for word in words))
        result = self.c.ioctl(fd, request, block)
        return (ctypes.get_errno() if result != 0 else 0), tuple(block)


_LIBC = Libc()


def open_descriptor(features: Feature = NEEDED) -> int:
    """A new descriptor for this process's own memory, which answers with events. Raises KernelError."""
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise KernelError("userfaultfd", platform.machine(), errno.ENOSYS)
    fd = int(_LIBC.c.syscall(ctypes.c_long(number), ctypes.c_long(os.O_CLOEXEC | os.O_NONBLOCK)))
    if fd < 0:
        raise KernelError("userfaultfd", "", ctypes.get_errno())
    failed, _ = _LIBC.ioctl(fd, _UFFDIO_API, API, int(features), 0)
    if failed:
        os.close(fd)
        raise KernelError("ioctl", "UFFDIO_API", failed)
    return fd


def available() -> bool | None:
    """Whether this kernel has it with every event that is needed; None: it may not be asked."""
    try:
        os.close(open_descriptor())
    except KernelError as error:
        return False if error.errno in (errno.ENOSYS, errno.EINVAL) else None
    return True


def register(fd: int, start: int, length: int) -> None:
    """Missing pages of the range wait from now on. Raises KernelError."""
    failed, _ = _LIBC.ioctl(fd, _UFFDIO_REGISTER, start, length, MODE_MISSING, 0)
    if failed:
        raise KernelError("ioctl", "UFFDIO_REGISTER", failed)


def unregister(fd: int, start: int, length: int) -> None:
    """Missing pages of the range read as zeros from now on. Raises KernelError."""
    failed, _ = _LIBC.ioctl(fd, _UFFDIO_UNREGISTER, start, length)
    if failed:
        raise KernelError("ioctl", "UFFDIO_UNREGISTER", failed)


def wake(fd: int, start: int, length: int = PAGE) -> None:
    """Have whoever waits in the range look again."""
    _LIBC.ioctl(fd, _UFFDIO_WAKE, start, length)


def copy(fd: int, address: int, source: int, length: int) -> tuple[int, int]:
    """Place `length` bytes from our own address `source`: bytes placed, and the error number that ended it (0: none).

    EEXIST: a page is there already; ENOENT: the range is not registered as a whole; EFAULT: the source cannot be read.
    Raises GoneError and AgainError.
    """
    return _placed(*_LIBC.ioctl(fd, _UFFDIO_COPY, address, source, length, 0, 0))


def zero(fd: int, address: int, length: int = PAGE) -> tuple[int, int]:
    """Place zeros, as `copy`."""
    return _placed(*_LIBC.ioctl(fd, _UFFDIO_ZEROPAGE, address, length, 0, 0))


def _placed(failed: int, words: tuple[int, ...]) -> tuple[int, int]:
    """A call that was cut short says EAGAIN and how far it came; the next one says what it met there."""
    if failed == 0 or words[-1] > 0:
        return words[-1], 0
    if failed == errno.ESRCH:
        raise GoneError
    if failed == errno.EAGAIN:
        raise AgainError
    return 0, failed


def gone(fd: int) -> bool:
    """Whether the address space has ended. Asked by ending the registration of a page where nothing ever is."""
    failed, _ = _LIBC.ioctl(fd, _UFFDIO_UNREGISTER, 1 << 16, PAGE)
    return failed in (errno.ENOMEM, errno.ESRCH)


def read_into(fd: int, place: memoryview) -> bool:
    """Have the kernel write the next message right into `place` (32 bytes); False: none there. Raises KernelError."""
    with reported("read", LINK):
        try:
            return os.readv(fd, [place]) == MESSAGE_SIZE
        except BlockingIOError:
            return False


def parse(raw: bytes | memoryview) -> Message | None:
    """A message; None: none was written there. Raises KernelError for an event that was never asked for."""
    event, _, _, _, first, second, third = _WORDS.unpack(raw)
    if event == 0:
        return None
    try:
        found = Event(event)
    except ValueError:
        raise KernelError("read", f"userfaultfd event {event:#x}", errno.EPROTO) from None
    return Message(found, first & 0xFFFFFFFF if found is Event.FORK else first, second, third)


def is_descriptor(fd: int) -> bool:
    """Whether this process has a userfaultfd open by that number."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == LINK  # noqa: PTH115 - no path of a file
    except OSError:
        return False


def map_file(fd: int, size: int) -> int:
    """Map a file for reading; its address. It stays until this process ends. Raises KernelError."""
    address = _LIBC.c.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address is None or address == _MAP_FAILED:
        raise KernelError("mmap", "", ctypes.get_errno())
    return int(address)


def fetch(address: int, length: int) -> bool:
    """Have mapped pages in hand, so that placing them need not wait; whether they can be read. Before Linux 5.14: yes.

    `address`: need not be that of a page.
    """
    begin = address & ~(PAGE - 1)
    done = _LIBC.c.madvise(begin, address + length - begin, _MADV_POPULATE_READ) == 0
    return done or ctypes.get_errno() == errno.EINVAL

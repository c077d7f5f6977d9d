"""/dev/mapper/control: mapped devices and their tables, by ioctl.

Source: include/uapi/linux/dm-ioctl.h. Every call takes one piece of memory: struct dm_ioctl, then what belongs to the
call (targets and their parameters, in both directions).

No udev cookie is sent, so nobody is waited for; udev hears of the device as of any other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import reported

CONTROL = "dev/mapper/control"
VERSION = (4, 0, 0)  # of the interface: what is used here was there from the beginning
SECTOR = 512  # bytes; all of device-mapper counts in these

NAME_LENGTH = 128  # with the NUL
TYPE_LENGTH = 16
# version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid, data[7]
HEADER = struct.Struct("<3I3IiI2IQ128s129s7x")
TARGET = struct.Struct("<2QiI16s")  # sector_start, length, status, next, target_type; the parameters follow
ALIGNMENT = 8

READONLY = 1 << 0
SUSPENDED = 1 << 1
STATUS_TABLE = 1 << 4
ACTIVE_PRESENT = 1 << 5
BUFFER_FULL = 1 << 8
SKIP_LOCKFS = 1 << 10

_ROOM = 4096  # bytes for targets out of the kernel; doubled while they do not fit
_MOST = 1 << 20

Ioctl = Callable[[int, int, bytearray], object]


def _request(number: int) -> int:
    """_IOWR(DM_IOCTL, number, struct dm_ioctl); the same on x86_64, aarch64 and riscv64."""
    return 3 << 30 | HEADER.size << 16 | 0xFD << 8 | number


DM_VERSION = _request(0)
DM_DEV_CREATE = _request(3)
DM_DEV_REMOVE = _request(4)
DM_DEV_SUSPEND = _request(6)
DM_DEV_STATUS = _request(7)
DM_TABLE_LOAD = _request(9)
DM_TABLE_STATUS = _request(12)


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` sectors from `start` of a mapped device. `text`: the target's parameters, or what it says of itself."""

    start: int
    length: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Info:
    """A mapped device. `device`: its number, as in st_rdev. `active`: whether it has a table that is in use."""

    device: int
    opened: int
    suspended: bool
    active: bool


def pack(name: str, *, flags: int = 0, targets: int = 0, data: bytes = b"") -> bytearray:
    """One argument: header and data. Raises KernelError for a name that does not fit."""
    raw = os.fsencode(name)
    if not raw or len(raw) >= NAME_LENGTH or b"/" in raw:
        raise KernelError("device-mapper", name, errno.EINVAL)
    size = HEADER.size + len(data)
    head = HEADER.pack(*VERSION, size, HEADER.size, targets, 0, flags, 0, 0, 0, raw, b"")
    return bytearray(head + data)


def pack_table(segments: Sequence[Segment]) -> bytes:
    """The chain of targets of a table: each says how far it is from its beginning to the next one's."""
    out = b""
    for each in segments:
        text = os.fsencode(each.text) + b"\0"
        text += bytes(-(TARGET.size + len(text)) % ALIGNMENT)
        out += TARGET.pack(each.start, each.length, 0, TARGET.size + len(text), each.kind.encode()) + text
    return out


def unpack_table(data: bytes | bytearray, count: int) -> tuple[Segment, ...]:
    """The chain as the kernel gives it: there `next` counts from the first target. Raises ValueError if cut short."""
    found, place = [], 0
    for _ in range(count):
        if place + TARGET.size > len(data):
            raise ValueError("a target beyond the end")
        start, length, _status, following, kind = TARGET.unpack_from(data, place)
        begin = place + TARGET.size
        end = data.find(b"\0", begin)
        if end < 0:
            raise ValueError("parameters without an end")
        text = bytes(data[begin:end]).decode(errors="surrogateescape")
        found.append(Segment(start, length, kind.rstrip(b"\0").decode(errors="replace"), text))
        place = following
    return tuple(found)


class DeviceMapper:
    """The open control device. Every method raises KernelError with the call's name, the device's name and errno."""

    __slots__ = ("_fd", "_ioctl")

    def __init__(self, fd: int, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._fd = fd
        self._ioctl = ioctl

    def __enter__(self) -> DeviceMapper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the control device; mapped devices stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _call(self, call: str, request: int, name: str, argument: bytearray) -> None:
        with reported(call, name):
            self._ioctl(self._fd, request, argument)

    def version(self) -> tuple[int, int, int]:
        """Of the kernel's interface."""
        argument = pack("version")
        self._call("DM_VERSION", DM_VERSION, CONTROL, argument)
        first, second, third = HEADER.unpack_from(argument)[:3]
        return first, second, third

    def create(self, name: str) -> Info:
        """A device without a table. EBUSY: there is one of that name."""
        argument = pack(name)
        self._call("DM_DEV_CREATE", DM_DEV_CREATE, name, argument)
        return _info(argument)

    def load(self, name: str, table: Sequence[Segment]) -> None:
        """Put a table into the inactive slot, in place of one that is there; `resume` brings it into use."""
        argument = pack(name, targets=len(table), data=pack_table(table))
        self._call("DM_TABLE_LOAD", DM_TABLE_LOAD, name, argument)

    def suspend(self, name: str, *, frozen: bool = False) -> None:
        """Freeze the file system on it and wait until all that was sent to it is done. Done as well when suspended.

        `frozen`: it is frozen already.
        """
        flags = SUSPENDED | SKIP_LOCKFS if frozen else SUSPENDED
        self._call("DM_DEV_SUSPEND", DM_DEV_SUSPEND, name, pack(name, flags=flags))

    def resume(self, name: str) -> None:
        """Bring the loaded table, if any, into use and go on. Done as well when nothing is to be done."""
        self._call("DM_DEV_SUSPEND", DM_DEV_SUSPEND, name, pack(name))

    def info(self, name: str) -> Info | None:
        """None: there is no such device."""
        argument = pack(name)
        if not self._asked("DM_DEV_STATUS", DM_DEV_STATUS, name, argument):
            return None
        return _info(argument)

    def status(self, name: str) -> tuple[Segment, ...] | None:
        """What each target of the table in use says of itself; none without a table. None: no such device."""
        return self._segments(name, 0)

    def table(self, name: str) -> tuple[Segment, ...] | None:
        """The table in use, its parameters as text; none without a table. None: no such device."""
        return self._segments(name, STATUS_TABLE)

    def remove(self, name: str) -> None:
        """Unmap. EBUSY: it is open; ENXIO: there is no such device."""
        self._call("DM_DEV_REMOVE", DM_DEV_REMOVE, name, pack(name))

    def _asked(self, call: str, request: int, name: str, argument: bytearray) -> bool:
        try:
            self._call(call, request, name, argument)
        except KernelError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        return True

    def _segments(self, name: str, flags: int) -> tuple[Segment, ...] | None:
        room = _ROOM
        while room <= _MOST:
            argument = pack(name, flags=flags, data=bytes(room))
            if not self._asked("DM_TABLE_STATUS", DM_TABLE_STATUS, name, argument):
                return None
            fields = HEADER.unpack_from(argument)
            if not fields[7] & BUFFER_FULL:
                try:
                    return unpack_table(argument[fields[4] :], fields[5])
                except ValueError as error:
                    raise KernelError("DM_TABLE_STATUS", name, errno.EPROTO) from error
            room *= 2
        raise KernelError("DM_TABLE_STATUS", name, errno.EMSGSIZE)


def _info(argument: bytearray) -> Info:
    fields = HEADER.unpack_from(argument)
    flags = fields[7]
    # huge_encode_dev() and glibc's dev_t agree in the 32 bits that the kernel uses
    return Info(fields[10], fields[6], bool(flags & SUSPENDED), bool(flags & ACTIVE_PRESENT))


def loaded(root: Path = Path("/")) -> bool:
    """Whether this kernel has device-mapper; without it there is no mapped device."""
    return (root / "sys/class/misc/device-mapper").exists()


def open_control(root: Path = Path("/")) -> DeviceMapper:
    """Open the control device. Raises KernelError: ENOENT dm_mod is not loaded, EACCES not root."""
    path = root / CONTROL
    with reported("open", path, "Load dm_mod, as root"):
        return DeviceMapper(os.open(path, os.O_RDWR | os.O_CLOEXEC))

"""/dev/kspawn: start another kernel on CPUs and memory that this one gave up.

Source: kupgrade/kmod/uapi/kspawn.h, which says what every call does, refuses and undoes at close.
"""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import reported

ABI_VERSION = 1
NO_APIC_ID = 0xFFFFFFFF

INFO_X2APIC = 0x1
INFO_LA57 = 0x2

CAP_START = 0x1
CAP_LEAVE = 0x2
CAP_ACPI = 0x4
CAP_PCI = 0x8
CAP_PANIC_FLAG = 0x10
CAP_GUARD = 0x20

START_FOREIGN = 0x1
START_TIED = 0x2
START_OWN = 0x4
LEAVE_ALL = 0x1
PCI_KEEP = 0x1

ACPI_MAX = 65536
GUARD_MIN_US = 20
GUARD_MAX_US = 1000000

# The structures in the header's order, reserved members as padding (which struct fills with zeros).
INFO = struct.Struct("<2I2Q7I4x32x")
START = struct.Struct("<2I3Q16x")
STOP = struct.Struct("<2I24x")
LEAVE = struct.Struct("<3QI4x16x")
ACPI = struct.Struct("<Q2I16x")
PCI = struct.Struct("<I2B2xI4x16x")
PANIC_FLAG = struct.Struct("<Q2I16x")
GUARD = struct.Struct("<3Q3I4x16x")
EVENT = struct.Struct("<3QI4x16x")


def _request(direction: int, number: int, size: int) -> int:
    """_IOC(direction, KSPAWN_IOC, number, size) of x86, include/uapi/asm-generic/ioctl.h."""
    return direction << 30 | size << 16 | 0xBC << 8 | number


_WRITE, _READ = 1, 2
IOC_INFO = _request(_READ, 0, INFO.size)
IOC_START = _request(_WRITE, 1, START.size)
IOC_STOP = _request(_WRITE, 2, STOP.size)
IOC_LEAVE = _request(_WRITE, 3, LEAVE.size)
IOC_ACPI = _request(_WRITE, 4, ACPI.size)
IOC_QUIESCE = _request(_WRITE, 5, PCI.size)
IOC_RESUME = _request(_WRITE, 6, PCI.size)
IOC_PANIC_FLAG = _request(_WRITE, 7, PANIC_FLAG.size)
IOC_GUARD = _request(_WRITE, 8, GUARD.size)

DEVICE = Path("dev/kspawn")

Ioctl = Callable[[int, int, bytes | bytearray], object]


@dataclass(frozen=True, slots=True)
class Info:
    """struct kspawn_info. `bsp_apic_id` None: not known (yet), so no CPU can be started."""

    abi_version: int
    flags: int
    capabilities: int
    trampoline: int
    trampoline_size: int
    tsc_khz: int
    bsp_apic_id: int | None
    boot_apic_id: int
    nr_ioapics: int
    max_apic_id: int
    nr_started: int

    @property
    def x2apic(self) -> bool:
        """Whether the local APICs are in x2APIC mode."""
        return bool(self.flags & INFO_X2APIC)

    @property
    def la57(self) -> bool:
        """Whether this kernel runs with 5-level paging."""
        return bool(self.flags & INFO_LA57)

    def can(self, capability: int) -> bool:
        """Whether all bits of `capability` (CAP_*) are there."""
        return self.capabilities & capability == capability


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a CPU goes on: 64-bit entry point, page table (physical address) and register RSI.

    The page table must map the entry point to memory that `map` would map, and the trampoline's page to itself.
    """

    rip: int
    cr3: int
    rsi: int = 0


@dataclass(frozen=True, slots=True)
class PciFunction:
    """A PCI function as the kernel numbers it."""

    domain: int
    bus: int
    devfn: int

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.devfn >> 3:02x}.{self.devfn & 7}"


@dataclass(frozen=True, slots=True)
class Event:
    """struct kspawn_event: a guard fired. `time_ns` is of CLOCK_MONOTONIC."""

    time_ns: int
    address: int
    value: int
    nr_stopped: int


class Kspawn:
    """An open /dev/kspawn. Closing it (or dying) undoes what belongs to the descriptor; see the header.

    Every method raises KernelError with the call's name, its subject and errno; the header lists the errnos.
    """

    __slots__ = ("_ioctl", "fd", "path")

    def __init__(self, fd: int, path: Path, ioctl: Ioctl = fcntl.ioctl) -> None:
        self.fd = fd  # for poll(2): readable once a guard fired
        self.path = path
        self._ioctl = ioctl

    def __enter__(self) -> Kspawn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; safe to call twice. Mappings stay."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _call(self, name: str, request: int, argument: bytes | bytearray, subject: str = "") -> None:
        with reported(name, subject or self.path):
            self._ioctl(self.fd, request, argument)

    def info(self) -> Info:
        """What the module can do here."""
        buffer = bytearray(INFO.size)
        self._call("KSPAWN_INFO", IOC_INFO, buffer)
        version, flags, capabilities, trampoline, size, khz, bsp, boot, ioapics, highest, started = INFO.unpack(buffer)
        known = None if bsp == NO_APIC_ID else bsp
        return Info(version, flags, capabilities, trampoline, size, khz, known, boot, ioapics, highest, started)

    def start(
        self, apic_id: int, entry: Entry, *, foreign: bool = False, tied: bool = False, own: bool = False
    ) -> None:
        """Start an offline CPU at `entry`.

        `foreign`: it was never online in this kernel, and the caller knows that no other kernel runs on it.
        `tied`: it stops when this descriptor is closed. `own`: `entry` is this kernel's own park loop, so the CPU does
        not count as started and can be brought online.
        """
        flags = START_FOREIGN * foreign | START_TIED * tied | START_OWN * own
        argument = START.pack(apic_id, flags, entry.rip, entry.cr3, entry.rsi)
        self._call("KSPAWN_START", IOC_START, argument, f"APIC id {apic_id}")

    def stop(self, apic_id: int, *, foreign: bool = False) -> None:
        """Stop a CPU, whatever it does; done as well when nothing runs there."""
        self._call("KSPAWN_STOP", IOC_STOP, STOP.pack(apic_id, START_FOREIGN * foreign), f"APIC id {apic_id}")

    def leave(self, entry: Entry, *, everyone: bool = False) -> None:
        """End this kernel: its last online CPU goes on at `entry`. Nothing is synced. Returns only by an error.

        `everyone`: all online CPUs, at the same time; else EBUSY unless there is only one.
        """
        argument = LEAVE.pack(entry.rip, entry.cr3, entry.rsi, LEAVE_ALL * everyone)
        self._call("KSPAWN_LEAVE", IOC_LEAVE, argument)

    def load_ssdt(self, table: bytes) -> None:
        """Load an ACPI table into this kernel, for good."""
        content = array.array("B", table)  # keeps still while the kernel reads it
        address, length = content.buffer_info()
        self._call("KSPAWN_ACPI", IOC_ACPI, ACPI.pack(address, length, 0))

    def quiesce(self, function: PciFunction, *, keep: bool = False) -> None:
        """Make a device still, its driver bound; done as well when it is, then it becomes this descriptor's.

        `keep`: it stays so when the descriptor is closed (it was handed over).
        """
        argument = PCI.pack(function.domain, function.bus, function.devfn, PCI_KEEP * keep)
        self._call("KSPAWN_QUIESCE", IOC_QUIESCE, argument, str(function))

    def resume(self, function: PciFunction) -> None:
        """Bring a quiesced device back; EALREADY: it is not quiesced."""
        argument = PCI.pack(function.domain, function.bus, function.devfn, 0)
        self._call("KSPAWN_RESUME", IOC_RESUME, argument, str(function))

    def set_panic_flag(self, address: int, value: int) -> None:
        """Have a panic of this kernel write the 32-bit `value` at a physical address; replaces an earlier one."""
        self._call("KSPAWN_PANIC_FLAG", IOC_PANIC_FLAG, PANIC_FLAG.pack(address, value, 0), f"{address:#x}")

    def withdraw_panic_flag(self) -> None:
        """Write nothing at a panic; done as well when no flag is set."""
        self._call("KSPAWN_PANIC_FLAG", IOC_PANIC_FLAG, PANIC_FLAG.pack(0, 0, 0))

    def guard(self, address: int, mask: int, apic_ids: Sequence[int], interval_us: int = 0) -> None:
        """Send INIT to those of `apic_ids` that are started once a bit of `mask` is set in the 8 bytes at `address`.

        `interval_us` 0 leaves the interval to the module (50). EBUSY: this descriptor's guard is armed.
        """
        ids = array.array("I", apic_ids)
        argument = GUARD.pack(address, mask, ids.buffer_info()[0], len(ids), interval_us, 0)
        self._call("KSPAWN_GUARD", IOC_GUARD, argument, f"{address:#x}")

    def disarm(self) -> None:
        """Stop the guard; done as well when none is armed. An event that was not read stays."""
        self._call("KSPAWN_GUARD", IOC_GUARD, GUARD.pack(0, 0, 0, 0, 0, 0))

    def read_event(self) -> Event:
        """The event of the guard; waits for it, unless the descriptor is readable."""
        with reported("read", self.path):
            data = os.read(self.fd, EVENT.size)
        return Event(*EVENT.unpack(data))

    def map(self, address: int, length: int, *, writable: bool = True) -> mmap.mmap:
        """Map physical memory that this kernel does not use, page-aligned; it cannot go online while mapped."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            return mmap.mmap(self.fd, length, mmap.MAP_SHARED, protection, offset=address)
        except (OSError, ValueError, OverflowError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            raise KernelError("mmap", f"{address:#x}+{length:#x}", number) from error


def open_device(root: Path = Path("/"), *, writable: bool = True) -> Kspawn:
    """Open the device and check its ABI version. Read-only is enough for `info` and read-only mappings.

    Raises KernelError: ENOENT the module is not loaded, EPERM not root or lockdown, EPROTO another ABI version.
    """
    path = root / DEVICE
    with reported("open", path, "Load the module kspawn, as root"):
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    device = Kspawn(fd, path)
    try:
        version = device.info().abi_version
    except KernelError:
        device.close()
        raise
    if version != ABI_VERSION:
        device.close()
        raise KernelError("KSPAWN_INFO", str(path), errno.EPROTO, f"Load a kspawn with ABI version {ABI_VERSION}")
    return device

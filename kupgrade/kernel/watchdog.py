"""Watchdog devices: what they are, and arming one.

Sources: Documentation/watchdog/watchdog-api.rst, Documentation/ABI/testing/sysfs-class-watchdog.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import read_text, reported

# include/uapi/linux/watchdog.h; the same encoding on x86_64, aarch64 and riscv64
WDIOC_SETTIMEOUT = 0xC0045706
WDIOC_GETTIMEOUT = 0x80045707

MAGIC_CLOSE = b"V"
SOFTWARE = "Software Watchdog"  # softdog's identity: a timer of the kernel, which ends with it


@dataclass(frozen=True, slots=True)
class WatchdogFacts:
    """One device, from sysfs; seconds; None or "" is unknown.

    `nowayout`: once started it cannot be stopped. `active`: it counts down now, so somebody must pet it.
    """

    name: str  # watchdog0; the device is /dev/NAME
    identity: str
    active: bool | None
    nowayout: bool | None
    timeout: int | None
    min_timeout: int | None
    max_timeout: int | None
    timeleft: int | None


class IoctlCalls(Protocol):
    """The one call this module needs of Libc."""

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """See Libc."""
        ...


def _text(path: Path) -> str:
    try:
        return read_text(path).strip()
    except KernelError:
        return ""  # attributes depend on driver and CONFIG_WATCHDOG_SYSFS


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def watchdogs(root: Path = Path("/")) -> tuple[WatchdogFacts, ...]:
    """Every watchdog device, by name; never raises."""
    found = []
    for folder in sorted((root / "sys/class/watchdog").glob("watchdog*")):
        nowayout = _number(folder / "nowayout")
        found.append(
            WatchdogFacts(
                name=folder.name,
                identity=_text(folder / "identity"),
                active={"active": True, "inactive": False}.get(_text(folder / "state")),
                nowayout=None if nowayout is None else bool(nowayout),
                timeout=_number(folder / "timeout"),
                min_timeout=_number(folder / "min_timeout"),
                max_timeout=_number(folder / "max_timeout"),
                timeleft=_number(folder / "timeleft"),
            )
        )
    return tuple(found)


def stop_on_reboot(root: Path = Path("/")) -> bool | None:
    """Whether devices stop at reboot and kexec (parameter of the core); None: up to each driver, or unknown.

    With False an active watchdog runs on over kexec and resets a new kernel that does not pet it.
    """
    return {"0": False, "1": True}.get(_text(root / "sys/module/watchdog/parameters/stop_on_reboot"))


class ArmedWatchdog:
    """A running watchdog: it resets the machine `timeout` seconds after the last `pet`.

    Losing this object does not stop it (no magic close): the machine would reset. `disarm` stops it.
    """

    __slots__ = ("_fd", "device", "timeout")

    def __init__(self, fd: int, device: Path, timeout: int) -> None:
        self._fd = fd
        self.device = device
        self.timeout = timeout

    def pet(self) -> None:
        """Start the countdown anew. Raises KernelError."""
        with reported("write", self.device):
            os.write(self._fd, b"\0")

    def disarm(self) -> None:
        """Stop it and let go of the device. With nowayout it runs on, and resets the machine."""
        with reported("write", self.device):
            os.write(self._fd, MAGIC_CLOSE)
        os.close(self._fd)
        self._fd = -1

    def leave_running(self) -> None:
        """Let go of the device without stopping it, for the next kernel to pet (or be reset)."""
        os.close(self._fd)
        self._fd = -1


def arm(calls: IoctlCalls, device: Path, timeout: int) -> ArmedWatchdog:
    """Start the watchdog at `device` (/dev/watchdogN) with `timeout` seconds; the driver may round that.

    Opening it is what starts it; when the timeout is refused it is stopped again. Raises KernelError (EBUSY:
    somebody else, often systemd, holds it).
    """
    with reported("open", device):
        fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        granted = calls.ioctl(fd, WDIOC_SETTIMEOUT, timeout)
    except KernelError as error:
        ArmedWatchdog(fd, device, 0).disarm()
        raise KernelError("WDIOC_SETTIMEOUT", str(device), error.errno) from error
    return ArmedWatchdog(fd, device, granted)

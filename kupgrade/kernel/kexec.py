"""kexec: what is loaded, load, unload, execute.

Sources: kexec_file_load(2), reboot(2), Documentation/ABI/testing/sysfs-kernel-kexec-kdump.
"""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import REBOOT_KEXEC, read_text, reported

# include/uapi/linux/kexec.h
FILE_UNLOAD = 0x1
FILE_NO_INITRAMFS = 0x4

# Seconds. The kexec lock is held only while somebody else loads, unloads or reads the state.
BUSY_DEADLINE = 5.0

REMEDIES = {
    errno.EPERM: "Run as root, with kernel.kexec_load_disabled=0; under lockdown use a signed image",
    errno.ENOSYS: "The running kernel needs CONFIG_KEXEC_FILE",
    errno.ENOEXEC: "Use a kernel image for this machine's architecture that is relocatable",
    errno.EKEYREJECTED: "The image's signature is not accepted: use one signed by a key the kernel trusts",
    errno.ENOKEY: "The image is signed by a key the running kernel lacks: enrol it, or use another image",
    errno.ENODATA: "The image is not signed and the running kernel demands a signature",
    errno.EBADMSG: "The image's signature cannot be read: fetch the image again",
    errno.ENOPKG: "The running kernel lacks the algorithm of the image's signature",
    errno.EBUSY: "Another program loads a kernel at this moment: try again",
    errno.EADDRNOTAVAIL: "No hole in memory is large enough: free memory, or use a smaller initrd",
    errno.ENOMEM: "Free memory, or use a smaller initrd",
    errno.EINVAL: "Shorten the kernel command line (2047 bytes on x86)",
}


class Lockdown(enum.Enum):
    """Kernel lockdown, security/lockdown/lockdown.c."""

    NONE = "none"
    INTEGRITY = "integrity"
    CONFIDENTIALITY = "confidentiality"
    UNKNOWN = "unknown"  # securityfs is not mounted, or the LSM is not built in


@dataclass(frozen=True, slots=True)
class KexecState:
    """What the running kernel says about kexec; None is unknown. `crash_size`: bytes for a crash kernel."""

    supported: bool
    loaded: bool | None
    crash_loaded: bool | None
    crash_size: int | None
    load_disabled: bool | None
    lockdown: Lockdown


class KexecCalls(Protocol):
    """The system calls that load and start a kernel."""

    def kexec_file_load(self, kernel_fd: int, initrd_fd: int, cmdline: bytes, flags: int) -> None:
        """See Libc."""
        ...

    def reboot(self, command: int) -> None:
        """See Libc."""
        ...


def _number(root: Path, *paths: str) -> int | None:
    for path in paths:
        try:
            return int(read_text(root / path))
        except (KernelError, ValueError):
            continue  # absent or unreadable here: the next place, or unknown
    return None


def _flag(root: Path, *paths: str) -> bool | None:
    value = _number(root, *paths)
    return None if value is None else value != 0


def read_lockdown(root: Path = Path("/")) -> Lockdown:
    """The lockdown level, from a line as `none [integrity] confidentiality`."""
    try:
        text = read_text(root / "sys/kernel/security/lockdown")
        return Lockdown(text.partition("[")[2].partition("]")[0])
    except (KernelError, ValueError):
        return Lockdown.UNKNOWN


def read_state(root: Path = Path("/")) -> KexecState:
    """Read the state; never raises. Linux 7.2 added /sys/kernel/kexec/ beside the older files."""
    loaded = _flag(root, "sys/kernel/kexec/loaded", "sys/kernel/kexec_loaded")
    return KexecState(
        supported=loaded is not None,
        loaded=loaded,
        crash_loaded=_flag(root, "sys/kernel/kexec/crash_loaded", "sys/kernel/kexec_crash_loaded"),
        crash_size=_number(root, "sys/kernel/kexec/crash_size", "sys/kernel/kexec_crash_size"),
        load_disabled=_flag(root, "proc/sys/kernel/kexec_load_disabled"),
        lockdown=read_lockdown(root),
    )


def _explained(error: KernelError, path: str) -> KernelError:
    return KernelError(error.call, path or error.path, error.errno, REMEDIES.get(error.errno, ""))


def _file_load(calls: KexecCalls, kernel_fd: int, initrd_fd: int, cmdline: bytes, flags: int) -> None:
    """kexec_file_load(2), tried again for BUSY_DEADLINE while EBUSY, its only transient error."""
    import tenacity

    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, KernelError) and e.errno == errno.EBUSY),
        stop=tenacity.stop_after_delay(BUSY_DEADLINE),
        wait=tenacity.wait_fixed(0.05),
        reraise=True,
    ):
        with attempt:
            calls.kexec_file_load(kernel_fd, initrd_fd, cmdline, flags)


def load(calls: KexecCalls, kernel: Path, initrd: Path | None, cmdline: str) -> None:
    """Load a kernel for `execute`, replacing one that is loaded; the running kernel is not disturbed.

    `cmdline` is the whole command line: nothing is inherited. Raises KernelError with a remedy.
    """
    with reported("open", kernel):
        kernel_fd = os.open(kernel, os.O_RDONLY | os.O_CLOEXEC)
    initrd_fd = -1
    try:
        if initrd is not None:
            with reported("open", initrd):
                initrd_fd = os.open(initrd, os.O_RDONLY | os.O_CLOEXEC)
        flags = 0 if initrd is not None else FILE_NO_INITRAMFS
        _file_load(calls, kernel_fd, initrd_fd, cmdline.encode(errors="surrogateescape"), flags)
    except KernelError as error:
        if error.call == "open":
            raise
        raise _explained(error, str(kernel)) from error
    finally:
        os.close(kernel_fd)
        if initrd_fd >= 0:
            os.close(initrd_fd)


def unload(calls: KexecCalls) -> None:
    """Forget the loaded kernel; done as well when none is loaded."""
    try:
        _file_load(calls, -1, -1, b"", FILE_UNLOAD | FILE_NO_INITRAMFS)
    except KernelError as error:
        raise _explained(error, "") from error


def execute(calls: KexecCalls) -> None:
    """Start the loaded kernel now. Nothing is synced: the caller froze or synced the file systems.

    Does not return, except by KernelError (EINVAL: no kernel is loaded).
    """
    try:
        calls.reboot(REBOOT_KEXEC)
    except KernelError as error:
        remedy = REMEDIES.get(error.errno, "")
        if error.errno == errno.EINVAL:
            remedy = "No kernel is loaded for kexec"
        raise KernelError(error.call, error.path, error.errno, remedy) from error

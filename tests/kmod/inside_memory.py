"""Of inside.py: what can be mapped and by whom, and what that does to a memory block."""

from __future__ import annotations

import errno
import mmap
import os
import re
import time
from pathlib import Path

from inside_box import BOX, BOX_SIZE, Box, check, offline, refused, write

from kupgrade.errors import KernelError
from kupgrade.kernel import kspawn

MEMORY = Path("/sys/devices/system/memory")


def memory(device: kspawn.Kspawn) -> None:
    """What cannot be mapped."""
    iomem = Path("/proc/iomem").read_text()
    refused("mmap of online RAM", errno.EPERM, lambda: device.map(0x20000000, 4096))
    refused("mmap of the end of the box and more", errno.EPERM, lambda: device.map(BOX + BOX_SIZE - 4096, 8192))
    refused("mmap of low memory", errno.EPERM, lambda: device.map(0x10000, 4096))
    refused("mmap of the IOAPIC", errno.EPERM, lambda: device.map(0xFEC00000, 4096))
    refused("mmap of the local APIC", errno.EPERM, lambda: device.map(0xFEE00000, 4096))
    refused("mmap beyond all memory", errno.EINVAL, lambda: device.map(1 << 53, 4096))
    refused("mmap of /dev/pmem0's memory", errno.EBUSY, lambda: device.map(1 << 30, 4096))
    ecam = re.search(r"(\w+)-\w+ : PCI ECAM", iomem)
    if ecam:
        refused("mmap of the PCI configuration space", errno.EBUSY, lambda: device.map(int(ecam[1], 16), 4096))
    refused("private mapping", errno.EINVAL, lambda: mmap.mmap(device.fd, 4096, mmap.MAP_PRIVATE, offset=BOX))
    refused(
        "executable mapping",
        errno.EPERM,
        lambda: mmap.mmap(device.fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_EXEC, offset=BOX),
    )


def rights(device: kspawn.Kspawn) -> None:
    """A descriptor does not carry root's rights to who inherits it."""
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        status = 0
        for call in (device.info, lambda: device.stop(77), lambda: device.map(BOX, 4096)):
            try:
                call()
                status = 1
            except KernelError as error:
                status |= error.errno != errno.EPERM
        try:
            os.open("/dev/kspawn", os.O_RDONLY)
            status = 1
        except PermissionError:
            pass
        os._exit(status)
    check("nobody is refused", os.waitpid(child, 0)[1] == 0)


def blocks(device: kspawn.Kspawn, box: Box) -> None:
    """A mapped memory block stays offline."""
    size = int((MEMORY / "block_size_bytes").read_text(), 16)
    for path in sorted(MEMORY.glob("memory[0-9]*"), key=lambda p: -int(p.name[6:])):
        if (path / "state").read_text().strip() != "online":
            continue
        try:
            write(path / "state", "offline")
        except OSError:
            continue
        break
    else:
        check("a memory block goes offline", False)
        return
    base = int(path.name[6:]) * size
    mapped = device.map(base, size)
    mapped[0] = 1
    refused("online while mapped", errno.EBUSY, lambda: write(path / "state", "online"))
    child = os.fork()
    if child == 0:
        time.sleep(0.5)
        os._exit(0)
    mapped.close()
    refused("online while mapped in a child", errno.EBUSY, lambda: write(path / "state", "online"))
    os.waitpid(child, 0)
    with offline():
        mapped = device.map(base + (1 << 20), 1 << 20)
        device.start(3, box.entry())
        mapped.close()
        refused("online while a CPU is started", errno.EBUSY, lambda: write(path / "state", "online"))
        device.stop(3)
    write(path / "state", "online")
    check("online again", (path / "state").read_text().strip() == "online", f"{path.name} at {base:#x}")
    refused("mmap of it then", errno.EPERM, lambda: device.map(base, 4096))

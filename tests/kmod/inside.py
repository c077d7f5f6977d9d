"""Run as root in a virtual host booted with memmap=64M$0x30000000: what the kspawn module does and refuses there.

`inside.py check KO`, then for the end of the kernel `inside.py leave` (the serial line says LEFT) or `inside.py panic`
and, after the reset, `inside.py panicked KO`. Prints a line a check; exit status 1 when one failed. Its parts,
inside_*.py, lie beside it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import subprocess
import sys
import traceback
from pathlib import Path

from inside_box import (
    BOX,
    BOX_SIZE,
    CODE,
    CPU,
    FLAG,
    WORD,
    Box,
    check,
    failures,
    refused,
    subprocess_errno,
    write,
)
from inside_cpus import cpus, guard, own, park, tied
from inside_devices import PANIC_VALUE, devices, disk, panic_flag, ssdt
from inside_memory import blocks, memory, rights

from kupgrade.kernel import kspawn


def info(device: kspawn.Kspawn) -> None:
    facts = device.info()
    print("    ", facts, flush=True)
    check("INFO: the bootstrap processor is found", facts.bsp_apic_id == 0)
    check("INFO: an I/O APIC and all capabilities", facts.nr_ioapics == 1 and facts.can(0x3F))
    refused("a second load", errno.EEXIST, lambda: subprocess_errno(["insmod", sys.argv[2]]))


def arguments(device: kspawn.Kspawn, box: Box) -> None:
    """Refusals that need nothing but an argument."""
    requests = {
        "START": (kspawn.IOC_START, kspawn.START.size, (4, 32, 47)),
        "STOP": (kspawn.IOC_STOP, kspawn.STOP.size, (4, 8, 31)),
        "LEAVE": (kspawn.IOC_LEAVE, kspawn.LEAVE.size, (24, 28, 47)),
        "ACPI": (kspawn.IOC_ACPI, kspawn.ACPI.size, (12, 16, 31)),
        "QUIESCE": (kspawn.IOC_QUIESCE, kspawn.PCI.size, (6, 8, 12, 31)),
        "RESUME": (kspawn.IOC_RESUME, kspawn.PCI.size, (6, 8, 12, 31)),
        "PANIC_FLAG": (kspawn.IOC_PANIC_FLAG, kspawn.PANIC_FLAG.size, (12, 16, 31)),
        "GUARD": (kspawn.IOC_GUARD, kspawn.GUARD.size, (32, 36, 55)),
    }
    for name, (request, size, places) in requests.items():
        for place in places:
            raw = bytearray(size)
            raw[place] = 0x80
            refused(
                f"{name}: byte {place} is not zero",
                errno.EINVAL,
                lambda request=request, raw=raw: fcntl.ioctl(device.fd, request, bytes(raw)),
            )
    other_size = kspawn.IOC_STOP + (8 << 16)
    broadcast = 0xFFFFFFFF if device.info().x2apic else 0xFFFFFFFE
    refused("unknown request", errno.ENOTTY, lambda: fcntl.ioctl(device.fd, 0x4020BC7F, bytes(32)))
    refused("request of another size", errno.ENOTTY, lambda: fcntl.ioctl(device.fd, other_size, bytes(64)))
    with kspawn.open_device(writable=False) as reader:
        check("INFO on a read-only descriptor", reader.info().abi_version == 1)
        refused("STOP on a read-only descriptor", errno.EBADF, lambda: reader.stop(77))
        check("read-only mapping", reader.map(BOX, 4096, writable=False)[0] is not None)
    refused("START of an online CPU", errno.EBUSY, lambda: device.start(3, box.entry()))
    refused("STOP of an online CPU", errno.EBUSY, lambda: device.stop(3))
    refused("START of the bootstrap processor", errno.EPERM, lambda: device.start(0, box.entry(), foreign=True))
    refused("STOP of the bootstrap processor", errno.EPERM, lambda: device.stop(0))
    refused("START of an absent CPU", errno.ENODEV, lambda: device.start(77, box.entry(), foreign=True))
    refused("START of the broadcast id", errno.ERANGE, lambda: device.stop(broadcast))
    refused("LEAVE with several CPUs online", errno.EBUSY, lambda: device.leave(box.entry()))
    refused("RESUME of what is not quiesced", errno.EALREADY, lambda: device.resume(disk()))
    refused("QUIESCE of no device", errno.ENODEV, lambda: device.quiesce(kspawn.PciFunction(0, 0xEE, 0)))
    refused("QUIESCE of a device without driver", errno.EOPNOTSUPP, lambda: device.quiesce(kspawn.PciFunction(0, 0, 0)))
    refused("panic flag in this kernel's RAM", errno.EPERM, lambda: device.set_panic_flag(0x20000000, 1))
    refused("panic flag, not aligned", errno.EINVAL, lambda: device.set_panic_flag(BOX + 2, 1))
    refused("guard of an online CPU", errno.EBUSY, lambda: device.guard(BOX + WORD, 1, [3]))
    refused("guard of the bootstrap processor", errno.EPERM, lambda: device.guard(BOX + WORD, 1, [0]))
    refused("guard that looks too often", errno.EINVAL, lambda: device.guard(BOX + WORD, 1, [3], 1))


def complaints() -> None:
    log = subprocess.run(["dmesg"], capture_output=True, text=True).stdout
    bad = re.compile(r"WARNING:|BUG:|Oops|Call Trace|possible (?:circular|recursive)")
    found = [line for line in log.splitlines() if bad.search(line)]
    check("the kernel log holds no complaint", not found, "\n".join(found))


def main(verb: str) -> None:
    if verb in ("check", "panicked"):
        subprocess.run(["insmod", sys.argv[2]], check=True)
    device = kspawn.open_device()
    if verb == "panicked":
        value = struct.unpack_from("<I", device.map(BOX, BOX_SIZE), FLAG)[0]
        check("the panic left its flag", value == PANIC_VALUE, hex(value))
        return
    box = Box(device)
    if verb == "check":
        print("    ", os.uname().release, flush=True)
        info(device)
        for part in (memory, rights, ssdt, panic_flag, devices):
            part(device)
        for part in (arguments, cpus, park, own, guard, tied, blocks):
            part(device, box)
        box.memory.close()
        device.close()
        subprocess.run(["rmmod", "kspawn"], check=True)
        subprocess.run(["insmod", sys.argv[2]], check=True)
        check("unloads and loads again", True)
        complaints()
    elif verb == "leave":
        text = b"\r\nLEFT\r\n"
        box.put(CODE, b"\x66\xba\xf8\x03" + b"".join(b"\xb0" + bytes([byte]) + b"\xee" for byte in text) + b"\xeb\xfe")
        for cpu in (1, 2, 3):
            write(CPU.with_name(f"cpu{cpu}") / "online", "0")
        device.leave(box.entry())
    elif verb == "panic":
        box.put(FLAG, bytes(8))
        device.set_panic_flag(BOX + FLAG, PANIC_VALUE)
        Path("/proc/sysrq-trigger").write_text("c")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception:
        traceback.print_exc(file=sys.stdout)
        failures.append("an exception")
    sys.stdout.flush()
    os._exit(bool(failures))

"""Of inside.py: devices stand still and come back; tables are loaded or refused; a panic flag is set."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import subprocess
import time
from pathlib import Path

from inside_box import BOX, FLAG, check, refused

from kupgrade.kernel import kspawn

DISK = "vda"
PANIC_VALUE = 0xDEAD


def function(path: Path) -> kspawn.PciFunction:
    match = re.findall(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.(\d)", str(path.resolve()))[-1]
    domain, bus, slot, number = (int(text, 16) for text in match)
    return kspawn.PciFunction(domain, bus, slot << 3 | number)


def disk() -> kspawn.PciFunction:
    return function(Path("/sys/block") / DISK)


def writer() -> int:
    """A child that writes a file through to the disk."""
    child = os.fork()
    if child == 0:
        os.closerange(3, 64)  # the device is not closed while a child holds it open
        fd = os.open("/opt/kspawn-test", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, os.urandom(4096) * 64)
        os.fsync(fd)
        os._exit(0)
    return child


def done_within(child: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0] == child:
            return True
        time.sleep(0.005)
    return False


def devices(device: kspawn.Kspawn) -> None:
    """The disk of the mounted root, and the network card, stand still and come back."""
    ctypes.CDLL(None).mlockall(3)  # nothing of this program may have to come from that disk
    os.sync()
    check("writing works", done_within(writer(), 5))
    for number in range(3):
        began = time.monotonic()
        device.quiesce(disk())
        took = time.monotonic() - began
        child = writer()
        stuck = not done_within(child, 0.3)
        device.quiesce(disk())
        began = time.monotonic()
        device.resume(disk())
        back = time.monotonic() - began
        check(f"the disk stands still, mounted ({number})", stuck, f"{took * 1000:.1f} ms")
        check("and goes on", done_within(child, 5), f"{back * 1000:.1f} ms")
    with kspawn.open_device() as other:
        other.quiesce(disk())
        child = writer()
        stuck = not done_within(child, 0.3)
    check("closing resumes the disk", stuck and done_within(child, 5))
    with kspawn.open_device() as other:
        other.quiesce(disk(), keep=True)
        child = writer()
    stuck = not done_within(child, 0.3)
    device.resume(disk())
    check("a kept one stays quiesced", stuck and done_within(child, 5))
    card = function(Path("/sys/class/net/eth0/device"))
    for _ in range(3):
        device.quiesce(card)
        device.resume(card)
    address = subprocess.run(["ip", "-4", "addr", "show", "eth0"], capture_output=True, text=True).stdout
    check("the card keeps its address", "192.0.2.2" in address)
    refused("QUIESCE of the ISA bridge", errno.EOPNOTSUPP, lambda: device.quiesce(kspawn.PciFunction(0, 0, 0x1F << 3)))


def ssdt(device: kspawn.Kspawn) -> None:
    """Only a whole SSDT is loaded."""

    def table(signature: bytes, body: bytes, wrong: int = 0) -> bytes:
        head = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), 2, 0, b"KUPGRA", b"TEST    ", 1, b"KUPG", 1)
        raw = bytearray(head + body)
        raw[9] = (-sum(raw) + wrong) & 0xFF
        return bytes(raw)

    name = b"\x08KSP0\x01"  # Name (KSP0, One)
    refused("SSDT with a wrong checksum", errno.EINVAL, lambda: device.load_ssdt(table(b"SSDT", name, 1)))
    refused("another table", errno.EINVAL, lambda: device.load_ssdt(table(b"DSDT", name)))
    refused("a torn table", errno.EINVAL, lambda: device.load_ssdt(table(b"SSDT", name)[:-1]))
    refused("no table", errno.EINVAL, lambda: device.load_ssdt(b"SSDT"))
    device.load_ssdt(table(b"SSDT", name))
    check("a good SSDT is loaded", True)


def panic_flag(device: kspawn.Kspawn) -> None:
    device.set_panic_flag(BOX + FLAG, PANIC_VALUE)
    device.set_panic_flag(BOX + FLAG + 4, PANIC_VALUE)
    device.withdraw_panic_flag()
    device.withdraw_panic_flag()
    check("a panic flag is set, replaced, withdrawn", True)

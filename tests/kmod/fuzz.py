"""Run as root in a virtual host with kspawn loaded: random calls that must not harm the kernel.

`fuzz.py SECONDS [SEED]`. Structures are filled with zeros, random bits and values that are nearly right, but never with
what would start, stop or end anything: all CPUs are online, and entry points lie in this kernel's own memory. Several
processes run at once, mapping and closing in between, so that calls and closes race.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import struct
import sys
import time
from pathlib import Path

from kupgrade.kernel import kspawn

BOX, BOX_SIZE = 0x30000000, 64 << 20
REQUESTS = {
    **{getattr(kspawn, f"IOC_{name}"): getattr(kspawn, name).size for name in ("START", "STOP", "LEAVE", "ACPI")},
    kspawn.IOC_PANIC_FLAG: kspawn.PANIC_FLAG.size,
    kspawn.IOC_GUARD: kspawn.GUARD.size,
    kspawn.IOC_QUIESCE: kspawn.PCI.size,
    kspawn.IOC_RESUME: kspawn.PCI.size,
    kspawn.IOC_INFO: kspawn.INFO.size,
}
EDGES = (0, 1, 2, 3, 0x7F, 0xFF, 0x100, 0xFFF, 0x1000, 0x10000, 0xA0000, 0xFFFFF, 0x100000, BOX, BOX + 8, BOX + 4)
EDGES += (BOX + BOX_SIZE - 8, BOX + BOX_SIZE, 1 << 30, 0xFEC00000, 0xFEE00000, 1 << 32, 1 << 47, 1 << 52, 1 << 63)
EDGES += (2**32 - 1, 2**64 - 1, 2**64 - 4096)
# Functions of this machine that stand still for a moment: none that holds the disk or the agent's line.
DEVICES = [path for path in Path("/sys/bus/pci/devices").iterdir() if (path / "vendor").read_text() == "0x1af4\n"]
SPARED = [p for p in DEVICES if any(p.glob("virtio*/block")) or any(p.glob("virtio*/virtio-ports"))]
ALLOWED = [p.name for p in DEVICES if p not in SPARED]


def fill(rng: random.Random, size: int) -> bytearray:
    raw = bytearray(size)
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        width = rng.choice((1, 4, 8))
        at = rng.randrange(0, size, width)
        value = rng.choice(EDGES) if rng.random() < 0.8 else rng.getrandbits(64)
        raw[at : at + width] = (value & ((1 << (8 * width)) - 1)).to_bytes(width, "little")
    return raw


def harmless(rng: random.Random, request: int, raw: bytearray) -> bytearray:
    """Take out the few values that could do what they say."""
    if request in (kspawn.IOC_START, kspawn.IOC_LEAVE):
        at = 16 if request == kspawn.IOC_START else 8
        raw[at : at + 8] = struct.pack("<Q", 0x20000000)  # a page table in this kernel's own memory: refused
    if request in (kspawn.IOC_QUIESCE, kspawn.IOC_RESUME) and len(raw) >= 8:
        if ALLOWED and rng.random() < 0.3:
            domain, bus, rest = rng.choice(ALLOWED).split(":")
            slot, function = rest.split(".")
            raw[:8] = struct.pack("<IBBH", int(domain, 16), int(bus, 16), int(slot, 16) << 3 | int(function), 0)
        else:
            raw[4] |= 0x80  # a bus that is not there
        raw[8] &= 0xFE  # kept devices would outlive the descriptor
    return raw


def one(rng: random.Random, device: kspawn.Kspawn, memory: ctypes.Array[ctypes.c_char]) -> None:
    what = rng.random()
    if what < 0.75:
        request = rng.choice(list(REQUESTS))
        raw = harmless(rng, request, fill(rng, REQUESTS[request]))
        if request in (kspawn.IOC_ACPI, kspawn.IOC_GUARD) and rng.random() < 0.7:
            at = 16 if request == kspawn.IOC_GUARD else 0
            raw[at : at + 8] = struct.pack("<Q", ctypes.addressof(memory))
        fcntl.ioctl(device.fd, request, raw)
    elif what < 0.85:
        request = rng.getrandbits(32) & ~0xFF00 | (0xBC00 if rng.random() < 0.9 else 0)
        size = request >> 16 & 0x3FFF
        if request not in REQUESTS:
            fcntl.ioctl(device.fd, request, bytearray(max(size, 1)))
    elif what < 0.95:
        length = rng.choice((4096, 8192, 1 << 20, BOX_SIZE, 1 << 40))
        offset = rng.choice((rng.choice(EDGES) & ~0xFFF, BOX + rng.randrange(0, BOX_SIZE, 4096)))
        flags, protection = rng.choice((mmap.MAP_SHARED, mmap.MAP_PRIVATE)), rng.choice((1, 2, 3, 7))
        mapped = mmap.mmap(device.fd, length, flags, protection, offset=offset & (2**63 - 1))
        mapped.close()
    else:
        os.set_blocking(device.fd, False)
        os.read(device.fd, rng.choice((0, 8, 48, 64)))


def process(seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    memory = ctypes.create_string_buffer(65536)
    end = time.monotonic() + seconds
    calls = done = 0
    while time.monotonic() < end:
        with kspawn.open_device(writable=rng.random() < 0.9) as device:
            for _ in range(rng.randrange(1, 200)):
                calls += 1
                memory[rng.randrange(64)] = rng.getrandbits(8)
                try:
                    one(rng, device, memory)
                    done += 1
                except (OSError, ValueError, OverflowError, BufferError):
                    pass  # refused, as most are
    print(f"seed {seed}: {calls} calls, {done} not refused", flush=True)


def main() -> int:
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            process(seed + number, seconds)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    with kspawn.open_device() as device:
        info = device.info()
    print(info, flush=True)
    return int(any(statuses) or info.nr_started != 0)


if __name__ == "__main__":
    sys.exit(main())

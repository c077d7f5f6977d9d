"""A fake kspawn, and a root with CPUs and memory blocks, for tests of the kernel beside this one."""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import acpi, kspawn, park_code
from kupgrade.kernel.kspawn import Entry, Info
from kupgrade.machine import spawn_box
from kupgrade.machine.spawner import Spawner
from kupgrade.model.codec import decode, encode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import Order
from tests.unit.kernel.test_bootparams import a_bzimage

UPGRADE = UpgradeId("20261121-041503-9f2c1a")
MIB = 1 << 20
BLOCK = 128 * MIB
WINDOW = 2 * MIB


class Device:
    """A kspawn over a file of memory (sparse, from physical address 0). A started CPU in the park loop says so."""

    def __init__(self, folder: Path) -> None:
        self.file = os.open(folder / "memory", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.file, 1 << 36)
        self.fd, self.fired = os.pipe()
        self.running: dict[int, Entry] = {}
        self.calls: list[tuple[object, ...]] = []
        self.guarded: tuple[int, ...] = ()
        self.deaf: set[int] = set()
        self.refuse: dict[int, int] = {}

    def info(self) -> Info:
        return Info(1, 0, 0x3F, 0x10000, 0x5000, 2_400_000, 0, 0, 1, 0xFE, len(self.running))

    def start(self, apic_id: int, entry: Entry) -> None:
        self.calls.append(("start", apic_id))
        if apic_id in self.refuse:
            raise KernelError("KSPAWN_START", f"APIC id {apic_id}", self.refuse[apic_id])
        assert apic_id not in self.running
        self.running[apic_id] = entry
        code = os.pread(self.file, len(park_code.CODE), entry.rip)
        if code == park_code.CODE and apic_id not in self.deaf:
            _, slots, count = park_code.PARAMETERS.unpack(
                os.pread(self.file, park_code.PARAMETERS.size, entry.rip + park_code.PARAMETERS_OFFSET)
            )
            for at in range(slots, slots + count * park_code.SLOT.size, park_code.SLOT.size):
                if struct.unpack("<I", os.pread(self.file, 4, at))[0] == apic_id:
                    os.pwrite(self.file, struct.pack("<I", 1), at + park_code.SLOT_PARKED_OFFSET)

    def stop(self, apic_id: int) -> None:
        self.calls.append(("stop", apic_id))
        if apic_id in self.refuse:
            raise KernelError("KSPAWN_STOP", f"APIC id {apic_id}", self.refuse[apic_id])
        self.running.pop(apic_id, None)

    def guard(self, address: int, mask: int, apic_ids: tuple[int, ...]) -> None:
        if self.guarded:
            raise KernelError("KSPAWN_GUARD", "", errno.EBUSY)
        self.guarded = tuple(apic_ids)
        self.calls.append(("guard", address, mask))

    def disarm(self) -> None:
        self.guarded = ()

    def read_event(self) -> kspawn.Event:
        os.read(self.fd, 1)
        return kspawn.Event(1, 2, 1, 2)

    def map(self, address: int, length: int, *, writable: bool = True) -> mmap.mmap:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(self.file, length, mmap.MAP_SHARED, protection, offset=address)


class Host:
    """A root with four CPUs and 24 memory blocks, of which the kernel's answers are files."""

    def __init__(self, root: Path, put: Callable[[str, str], Path]) -> None:
        self.root, self.put = root, put
        processors = (f"processor\t: {n}\napicid\t\t: {2 * n}\nflags\t\t: lm\n" for n in range(4))
        put("proc/cpuinfo", "\n".join(processors))
        put("proc/cmdline", "root=/dev/vda1 quiet\n")
        for name in ("present", "possible", "online"):
            put(f"sys/devices/system/cpu/{name}", "0-3\n")
        put("sys/devices/system/memory/block_size_bytes", f"{BLOCK:x}\n")
        for number in range(1, 4):
            put(f"sys/devices/system/cpu/cpu{number}/online", "1\n")
        for number in range(24):
            put(f"sys/devices/system/memory/memory{number}/state", "online\n")
            put(f"sys/devices/system/memory/memory{number}/valid_zones", "Movable\n" if number > 19 else "Normal\n")
        put("sys/firmware/memmap/0/start", "0x0\n")
        put("sys/firmware/memmap/0/end", "0x9fbff\n")
        put("sys/firmware/memmap/0/type", "System RAM\n")
        tables = root / "sys/firmware/acpi/tables"
        tables.mkdir(parents=True)
        (tables / "MCFG").write_bytes(acpi.mcfg([acpi.EcamRange(0xB0000000, 0, 0, 255)]))

    def online(self) -> list[int]:
        blocks = (self.root / "sys/devices/system/memory").glob("memory*")
        return sorted(int(each.name[6:]) for each in blocks if (each / "state").read_text().startswith("online"))


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(path: str, text: str) -> Path:
        target = tmp_path / "root" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    return write


@pytest.fixture
def host(tmp_path: Path, put: Callable[[str, str], Path]) -> Host:
    return Host(tmp_path / "root", put)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    found = Device(tmp_path)
    yield found
    for fd in (found.file, found.fd, found.fired):
        os.close(fd)


@pytest.fixture
def spawner(device: Device, host: Host, monkeypatch: pytest.MonkeyPatch) -> Spawner:
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    def turn(number: int, state: str) -> None:
        host.put(f"sys/devices/system/cpu/cpu{number}/online", state)
        online = [
            0,
            *(n for n in range(1, 4) if (host.root / f"sys/devices/system/cpu/cpu{n}/online").read_text()[0] == "1"),
        ]
        host.put("sys/devices/system/cpu/online", ",".join(map(str, online)))

    monkeypatch.setattr("kupgrade.kernel.cpu.take_offline", lambda number, _root: turn(number, "0"))
    monkeypatch.setattr("kupgrade.kernel.cpu.bring_online", lambda number, _root: turn(number, "1"))
    return Spawner(device, host.root, pause, lambda: now[0])  # type: ignore[arg-type]


def through_json(value):
    return decode(type(value), json.loads(json.dumps(encode(value))))


def blueprint(spawner: Spawner, tmp_path: Path, size: int = 6 * BLOCK, **changes) -> spawn_box.Blueprint:
    (tmp_path / "kernel").write_bytes(a_bzimage())
    (tmp_path / "initrd").write_bytes(b"initrd" * 1000)
    values = {
        "upgrade": UPGRADE,
        "epoch": 2,
        "generation": 1,
        "kernel": str(tmp_path / "kernel"),
        "initrd": str(tmp_path / "initrd"),
        "cmdline": "root=/dev/vda1 quiet",
        "memory": MemoryRange(8 * BLOCK, size),
        "window": WINDOW,
        **changes,
    }
    return spawner.lay_out(Order(**values), spawner.cpus_before((3, 2)))

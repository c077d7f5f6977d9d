"""Run as root in a virtual host booted with memmap=64M$0x30000000: what the kspawn module does and refuses there.

`inside.py check KO`, then for the end of the kernel `inside.py leave` (the serial line says LEFT) or `inside.py panic`
and, after the reset, `inside.py panicked KO`. Prints a line a check; exit status 1 when one failed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import select
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel import kspawn, park_code

BOX, BOX_SIZE = 0x30000000, 64 << 20
TABLES, CODE, MAILBOX, PARK, SLOTS, WORD, FLAG = 0, 0x10000, 0x20000, 0x21000, 0x22000, 0x30000, 0x31000
COUNTER = bytes.fromhex("f048ff06f390ebf8")  # 1: lock incq (%rsi); pause; jmp 1b
CPU = Path("/sys/devices/system/cpu/cpu3")
MEMORY = Path("/sys/devices/system/memory")
DISK = "vda"
PANIC_VALUE = 0xDEAD

failures: list[str] = []


def check(name: str, good: object, detail: object = "") -> None:
    if not good:
        failures.append(name)
    print("ok  " if good else "FAIL", name, detail, flush=True)


def refused(name: str, number: int, call: Callable[[], object]) -> None:
    try:
        call()
    except (KernelError, OSError) as error:
        check(name, error.errno == number, errno.errorcode.get(error.errno or 0))
    else:
        check(name, False, "was not refused")


def write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@contextmanager
def offline(cpu: Path = CPU) -> Iterator[None]:
    write(cpu / "online", "0")
    try:
        yield
    finally:
        write(cpu / "online", "1")


class Box:
    """The set-aside memory with page tables that map the first 4 GiB to themselves."""

    def __init__(self, device: kspawn.Kspawn) -> None:
        self.memory = device.map(BOX, BOX_SIZE)
        self.put(TABLES, struct.pack("<Q", BOX + TABLES + 0x1000 | 3))
        for gib in range(4):
            table = TABLES + 0x2000 + gib * 0x1000
            self.put(TABLES + 0x1000 + 8 * gib, struct.pack("<Q", BOX + table | 3))
            self.put(table, struct.pack("<512Q", *((gib << 30) + (n << 21) | 0x83 for n in range(512))))
        self.put(CODE, COUNTER)

    def put(self, offset: int, data: bytes) -> None:
        self.memory[offset : offset + len(data)] = data

    def word(self, offset: int) -> int:
        return struct.unpack_from("<Q", self.memory, offset)[0]

    def counts(self) -> bool:
        """Whether the counter moves; an emulated CPU may have to wait a while for its turn."""
        before, deadline = self.word(WORD), time.monotonic() + 1.5
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if self.word(WORD) != before:
                return True
        return False

    def stops(self) -> bool:
        """Whether the counter comes to rest: an emulated CPU takes note of INIT when it has its turn."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            before = self.word(WORD)
            time.sleep(0.2)
            if self.word(WORD) == before:
                return True
        return False

    def entry(self) -> kspawn.Entry:
        return kspawn.Entry(BOX + CODE, BOX + TABLES, BOX + WORD)


def info(device: kspawn.Kspawn) -> None:
    facts = device.info()
    print("    ", facts, flush=True)
    check("INFO: the bootstrap processor is found", facts.bsp_apic_id == 0)
    check("INFO: an I/O APIC and all capabilities", facts.nr_ioapics == 1 and facts.can(0x3F))
    refused("a second load", errno.EEXIST, lambda: subprocess_errno(["insmod", sys.argv[2]]))


def subprocess_errno(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    named = {"File exists": errno.EEXIST, "in use": errno.EBUSY, "Invalid": errno.EINVAL, "busy": errno.EBUSY}
    for text, number in named.items():
        if text in done.stderr:
            raise OSError(number, done.stderr)
    raise OSError(errno.EIO, done.stderr)


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


def cpus(device: kspawn.Kspawn, box: Box) -> None:
    """A CPU is given up, used, taken back."""
    with offline():
        bad = kspawn.Entry(0x20000000, BOX + TABLES)
        refused("START at an entry in this kernel's RAM", errno.EINVAL, lambda: device.start(3, bad))
        bad = kspawn.Entry(BOX + CODE, 0x20000000)
        refused("START with a page table in this kernel's RAM", errno.EINVAL, lambda: device.start(3, bad))
        bad = kspawn.Entry(BOX + CODE, BOX + WORD)
        refused("START with an empty page table", errno.EINVAL, lambda: device.start(3, bad))
        for number in range(5):
            began = time.monotonic()
            device.start(3, box.entry())
            took = time.monotonic() - began
            before = box.word(WORD)
            time.sleep(0.5)
            check(
                f"a started CPU counts ({number})",
                box.counts(),
                f"{box.word(WORD) - before} in 0.5 s, START took {took * 1000:.1f} ms",
            )
            if number == 0:
                refused("a started CPU comes online", errno.EBUSY, lambda: write(CPU / "online", "1"))
                refused("START twice", errno.EALREADY, lambda: device.start(3, box.entry()))
                refused("unload while a CPU is started", errno.EBUSY, lambda: subprocess_errno(["rmmod", "kspawn"]))
                check("INFO: one started", device.info().nr_started == 1)
            device.stop(3)
            check("it stops", box.stops())
        device.stop(3)
        check("STOP twice is fine", device.info().nr_started == 0)
    check("it is online again", (CPU / "online").read_text().strip() == "1")
    done = subprocess.run(["taskset", "-c", "3", "true"])
    check("and runs programs", done.returncode == 0)


def park(device: kspawn.Kspawn, box: Box) -> None:
    """The mailbox loop: seen as parked, woken, gone."""
    with offline():
        box.put(PARK, park_code.park_page(BOX + TABLES, BOX + SLOTS, 3))
        box.put(SLOTS, park_code.slot_table([7, 0x103, 3]))
        device.start(3, kspawn.Entry(BOX + PARK, BOX + TABLES))
        deadline = time.monotonic() + 2
        while not box.memory[SLOTS + 128 + 4] and time.monotonic() < deadline:
            time.sleep(0.001)
        check("parked, in its own slot", [box.memory[SLOTS + 64 * n + 4] for n in range(3)] == [0, 0, 1])
        mail = park_code.wake_up(0x103, BOX + CODE)
        box.put(MAILBOX + 2, mail[2:])
        box.put(MAILBOX, mail[:2])
        time.sleep(0.1)
        check("mail for an id that is equal in its low byte is not taken", box.memory[MAILBOX] == 1)
        box.put(MAILBOX, bytes(16))
        counter = bytes.fromhex("48be") + struct.pack("<Q", BOX + WORD) + COUNTER
        box.put(CODE + 0x100, counter)
        mail = park_code.wake_up(3, BOX + CODE + 0x100)
        box.put(MAILBOX + 2, mail[2:])
        box.put(MAILBOX, mail[:2])
        deadline = time.monotonic() + 2
        while box.memory[MAILBOX] and time.monotonic() < deadline:
            time.sleep(0.001)
        check("woken", box.counts() and box.memory[MAILBOX] == 0 and box.memory[SLOTS + 128 + 4] == 0)
        device.stop(3)


def own(device: kspawn.Kspawn, box: Box) -> None:
    """A CPU that waits for this kernel itself does not count as started: it comes online without a STOP."""
    both = struct.pack("<2I3Q16x", 3, kspawn.START_OWN | kspawn.START_TIED, BOX + CODE, BOX + TABLES, BOX + WORD)
    with offline():
        refused("START_OWN and START_TIED", errno.EINVAL, lambda: fcntl.ioctl(device.fd, kspawn.IOC_START, both))
        device.start(3, kspawn.Entry(BOX + PARK, BOX + TABLES), own=True)
        check("not counted as started", device.info().nr_started == 0)
    check("and online again", (CPU / "online").read_text().strip() == "1")


def guard(device: kspawn.Kspawn, box: Box) -> None:
    """The reset register is watched."""
    with offline():
        for number in range(5):
            box.put(FLAG, bytes(8))
            device.start(3, box.entry())
            device.guard(BOX + FLAG, 0xFF, [3])
            if number == 0:
                refused("a second guard", errno.EBUSY, lambda: device.guard(BOX + FLAG, 0xFF, [3]))
                check("not yet readable", not select.select([device.fd], [], [], 0)[0])
                box.put(FLAG + 1, b"\1")
                time.sleep(0.05)
                check("bits outside the mask do not count", box.counts())
            began = time.monotonic_ns()
            box.put(FLAG, b"\7")
            readable = select.select([device.fd], [], [], 2)[0]
            check(f"guard: readable ({number})", readable)
            event = device.read_event()
            late = (event.time_ns - began) / 1000
            good = event.nr_stopped == 1 and event.value & 0xFF == 7 and event.address == BOX + FLAG
            check("guard: saw it", good, f"{event}")
            check("guard: stopped it", box.stops(), f"INIT after {late:.0f} us")
            check("guard: no CPU counts as started", device.info().nr_started == 0)
        device.start(3, box.entry())
        with kspawn.open_device() as other:
            other.guard(BOX + FLAG + 8, 0xFF, [3])
        box.put(FLAG + 8, b"\1")
        check("a guard stops with its descriptor", box.counts())
        device.stop(3)
        box.put(FLAG, bytes(16))


def tied(device: kspawn.Kspawn, box: Box) -> None:
    """What a killed opener leaves behind."""
    with offline():
        for tie in (False, True):
            child = os.fork()
            if child == 0:
                kspawn.open_device().start(3, box.entry(), tied=tie)
                os.kill(os.getpid(), 9)
            os.waitpid(child, 0)
            check(f"the opener was killed, tied={tie}", box.stops() if tie else box.counts())
            check("started CPUs are counted", device.info().nr_started == (not tie))
            device.stop(3)


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
        fd = os.open("/root/kspawn-test", os.O_WRONLY | os.O_CREAT, 0o600)
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

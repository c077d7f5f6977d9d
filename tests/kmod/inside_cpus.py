"""Of inside.py: CPUs are started, parked, watched and stopped."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import subprocess
import time

from inside_box import (
    BOX,
    CODE,
    COUNTER,
    CPU,
    FLAG,
    MAILBOX,
    PARK,
    SLOTS,
    TABLES,
    WORD,
    Box,
    check,
    offline,
    refused,
    subprocess_errno,
    write,
)

from kupgrade.kernel import kspawn, park_code


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

"""Faults that a rehearsal injects. Nothing here acts unless KUPGRADE_FAULTS=1 is in the environment."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import criu_child
from kupgrade.machine import fill
from kupgrade.machine.places import Places
from kupgrade.model.spawn import WINDOW_PARAMETER

FAULT_PORT = "org.kupgrade.fault"
# What strikes a kernel that waits beside the one at work: a hook there, reached over its console or, within, a FIFO.
RELAYED = ("panic-new-kernel", "hang-new-kernel", "kill-agent", "channel-corrupted")
RELAYED_FIFO = "run/kupgrade/fault.fifo"
RELAY_SECONDS = 1.5  # until it has struck
RESET_CONTROL = 0xCF9


@dataclass(frozen=True, slots=True)
class Fault:
    """What to do where: `moment` is intent, effect, undo-intent, undo-effect or one within a step; `release` limits it.

    Within a step file systems are frozen: a fault there is armed below /run, or can never be spent.
    """

    fault: str
    step: str
    moment: str
    release: str
    path: Path


def passed_on() -> str:
    """The word that lets the agent of the next boot see faults, too; empty in production."""
    return "KUPGRADE_FAULTS=1 " if os.environ.get("KUPGRADE_FAULTS") == "1" else ""


def armed(places: Places) -> Fault | None:
    """The fault that waits, or None. A durable one survives the crossing."""
    if os.environ.get("KUPGRADE_FAULTS") != "1":
        return None
    for path in (places.root / "run/kupgrade-fault.json", places.state / "fault.json"):
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        return Fault(
            str(value.get("fault", "")),
            str(value.get("step", "")),
            str(value.get("moment") or "intent"),
            str(value.get("release") or ""),
            path,
        )
    return None


def strike(places: Places, step: str, moment: str) -> None:
    """Called at every crash window; strikes once."""
    fault = armed(places)
    if fault is None or (fault.release and fault.release != os.uname().release):
        return
    match fault.fault:
        case "kill-tool" if (step, moment) == (fault.step, fault.moment):
            if moment != "frozen" or places.state not in fault.path.parents:  # it cannot be, or ever come here again
                _spend(fault)
            os.kill(os.getpid(), signal.SIGKILL)
        case "power-cut" if (step, moment) == (fault.step, fault.moment):
            _spend(fault)
            _cut_power(places, f"power-cut {step} {moment}\n")
        case kind if kind in RELAYED and (step, moment) == (fault.step, fault.moment):
            _spend(fault)
            _relay(places, f"{kind} {step} {moment}\n")
        case "panic-old-kernel" if (step, moment) == (fault.step, fault.moment):
            _spend(fault)
            if _spawned(places):
                _relay(places, "panic-old-kernel\n")
            else:
                (places.root / "proc/sysrq-trigger").write_text("c")
        case "kill-page-server" | "kill-page-ring" if (step, moment) == (fault.step, fault.moment):
            _spend(fault)
            fill.strike(places, everyone=fault.fault == "kill-page-ring")
        case "images-corrupted" if (step, moment) == ("dump", "effect"):
            _spend(fault)
            _damage(places)
        case "criu-stops" if (step, moment) == ("dump", "intent"):
            _spend(fault)
            threading.Thread(target=_stop_criu, daemon=True).start()
        case "holder-dies" if (step, moment) == ("restore", "intent"):
            _spend(fault)
            _kill_holder(places)
        case "restore-fails" if (step, moment) == ("restore", "intent"):
            _spend(fault)
            raise KupgradeError("The restore failed", "injected by the rehearsal")
        case "probe-fails" if (step, moment) == ("probe", "intent"):
            _spend(fault)
            raise KupgradeError("The probe failed", "injected by the rehearsal")


def altered(places: Places, cmdline: str) -> str:
    """The new kernel's command line; a kernel that takes no memory over is one of the faults."""
    fault = armed(places)
    if fault is None or fault.fault != "memory-not-taken":
        return cmdline
    _spend(fault)
    return f"{cmdline} kho=off"


def _stop_criu() -> None:
    """In the middle of its work: it neither ends nor goes on by itself."""
    began: dict[int, int] = {}
    while True:
        for pid in criu_child.children(os.getpid()):
            with contextlib.suppress(OSError):  # one that has ended meanwhile
                # It is called with the first, and calls itself by the second once it works (setproctitle).
                if not any(word in Path(f"/proc/{pid}/cmdline").read_bytes() for word in (b"swrk", b"--rpc")):
                    continue
                now = criu_child.ticks(pid)
                if now > began.setdefault(pid, now) + 1:
                    os.kill(pid, signal.SIGSTOP)
                    return
        time.sleep(0.005)


def _kill_holder(places: Places) -> None:
    pid = int(json.loads((places.run / "image-holder.json").read_text())["pid"])
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/fd/0").exists():
        time.sleep(0.01)


def _spawned(places: Places) -> bool:
    """Whether this kernel was started beside another one."""
    return WINDOW_PARAMETER in (places.root / "proc/cmdline").read_text()


def _cut_power(places: Places, line: str) -> None:
    """Ask the rehearsal outside for a reset, and wait for it; without a way to ask, pull the line from within."""
    if not _say(places, line):
        _reset(places)
    time.sleep(3600)
    raise KupgradeError("The power was not cut", "nobody pulled the line", "Run in a virtual host")


def _relay(places: Places, line: str) -> None:
    """Have a word reach the hook in the other kernel, or in this one; it strikes while this waits."""
    fifo = places.root / RELAYED_FIFO
    if fifo.exists():
        fifo.write_text(line)
    elif not _say(places, line):
        raise KupgradeError("The fault cannot strike", f"no virtio port is called {FAULT_PORT}")
    time.sleep(RELAY_SECONDS)


def _say(places: Places, line: str) -> bool:
    """Whether the rehearsal could be told. Early in a boot udev has not made its links yet."""
    for name in places.root.glob("sys/class/virtio-ports/*/name"):
        if name.read_text().strip() == FAULT_PORT:
            path = places.root / "dev" / name.parent.name
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # never creates a file, nor waits for ever
            try:
                return os.write(descriptor, line.encode()) > 0
            except BlockingIOError:  # the port stands still for another kernel
                return False
            finally:
                os.close(descriptor)
    return False


def _reset(places: Places) -> None:
    """The chip set's reset register, in a virtual host of the rehearsal only: nothing is synced."""
    if not (places.root / "usr/lib/kupgrade-lab").is_dir() or " hypervisor" not in Path("/proc/cpuinfo").read_text():
        raise KupgradeError(
            "The power cannot be cut", f"no virtio port is called {FAULT_PORT}", "Run in a virtual host"
        )
    ctypes.CDLL(None).ioperm(RESET_CONTROL, 1, 1)
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x66\xba" + struct.pack("<H", RESET_CONTROL) + b"\xb0\x06\xee\xc3")  # mov dx; mov al, 6; out; ret
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def _spend(fault: Fault) -> None:
    fault.path.unlink(missing_ok=True)
    descriptor = os.open(fault.path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def _damage(places: Places) -> None:
    stores = ((places.state, "images"), (places.run, "pmem"), (places.run, "luo"))
    kinds = ("pages", "core")
    images = [path for top, name in stores for kind in kinds for path in top.glob(f"{name}/*/*/final/{kind}-*.img")]
    with max(images, key=lambda path: path.stat().st_size).open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 0xFF]))

"""Faults that a rehearsal injects. Nothing here acts unless KUPGRADE_FAULTS=1 is in the environment."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.machine.places import Places

FAULT_PORT = "org.kupgrade.fault"


@dataclass(frozen=True, slots=True)
class Fault:
    """What to do where: `moment` is intent, effect, undo-intent, undo-effect or frozen; `release` limits it to one."""

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
            if moment != "frozen":  # then nothing can be written any more, and nothing comes here again
                _spend(fault)
            os.kill(os.getpid(), signal.SIGKILL)
        case "power-cut" if (step, moment) == (fault.step, fault.moment):
            _spend(fault)
            _cut_power(places, f"power-cut {step} {moment}\n")
        case "images-corrupted" if (step, moment) == ("dump", "effect"):
            _spend(fault)
            _damage(places)
        case "restore-fails" if (step, moment) == ("restore", "intent"):
            _spend(fault)
            raise KupgradeError("The restore failed", "injected by the rehearsal")
        case "probe-fails" if (step, moment) == ("probe", "intent"):
            _spend(fault)
            raise KupgradeError("The probe failed", "injected by the rehearsal")


def _cut_power(places: Places, line: str) -> None:
    """Ask the rehearsal outside for a reset, and wait for it. Early in a boot udev has not made its links yet."""
    for name in places.root.glob("sys/class/virtio-ports/*/name"):
        if name.read_text().strip() != FAULT_PORT:
            continue
        descriptor = os.open(places.root / "dev" / name.parent.name, os.O_WRONLY)  # never creates a file
        os.write(descriptor, line.encode())
        time.sleep(3600)
    raise KupgradeError("The power cannot be cut", f"no virtio port is called {FAULT_PORT}", "Run in a virtual host")


def _spend(fault: Fault) -> None:
    fault.path.unlink(missing_ok=True)
    descriptor = os.open(fault.path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def _damage(places: Places) -> None:
    images = [*places.state.glob("images/*/*/final/pages-*.img"), *places.run.glob("pmem/*/*/final/pages-*.img")]
    images += [*places.state.glob("images/*/*/final/core-*.img"), *places.run.glob("pmem/*/*/final/core-*.img")]
    with max(images, key=lambda path: path.stat().st_size).open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 0xFF]))

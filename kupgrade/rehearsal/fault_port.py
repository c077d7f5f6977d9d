"""Faults that the lab produces from outside the virtual host when one inside asks for them."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import qemu
from kupgrade.rehearsal.faults import Fault
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.toolbox import Progress

_LOST = "FAULT-LOST"  # of an event: it was asked for, and could not be passed on


def watch(state: Path, running: qemu.Qemu, progress: Progress) -> None:
    """A line on the fault port pulls the machine's reset line, so that nothing that was not synced survives.

    Another word than power-cut is passed on to the kernel that waits beside the one which asks.
    """
    port = qemu.connect(state / "fault", 20.0)

    def serve() -> None:
        with contextlib.suppress(OSError), port, port.makefile("rb") as lines:
            for line in lines:
                text = line.decode(errors="replace").strip()
                try:
                    if text.startswith("power-cut"):
                        running.reset()
                    else:
                        running.type(text.partition(" ")[0])
                except (OSError, KupgradeError) as error:
                    running.events.append(qemu.Event(time.monotonic(), _LOST, text))
                    progress(f"fault: {text} could not be passed on: {error}")
                else:
                    progress(f"fault: {text}")

    threading.Thread(target=serve, daemon=True).start()


def panic_old(state: Path, link: Link, progress: Progress) -> None:
    """Once the new kernel says on its console that it is time, the old one panics: it has the link still."""
    while state.exists():
        with contextlib.suppress(OSError):
            if b"fault: panic-old-kernel" in (state / "serial2.log").read_bytes():
                break
        time.sleep(0.02)
    else:
        return
    progress("fault: the old kernel panics")
    with contextlib.suppress(KupgradeError):
        link.request({"write": "/proc/sysrq-trigger", "data": "Yw==", "mode": 0o200}, 1.0)  # c


@dataclass(frozen=True, slots=True)
class Told:
    """What the machine has told from outside up to now: how often it was reset, and bytes of the second console.

    One life of a machine has several upgrades, and a sign of an earlier one is none of a later one.
    """

    resets: int
    console: int
    lost: int  # faults that could not be passed on

    @classmethod
    def now(cls, running: qemu.Qemu) -> Told:
        """As of now."""
        resets = sum(event.name == "RESET" for event in running.events)
        return cls(resets, len(_console(running)), len(_lost(running)))

    def struck_since(self, fault: Fault | None, running: qemu.Qemu, *, committed: bool) -> bool:
        """Whether the fault is known to have struck without its own file telling."""
        if fault is None:
            return False
        cut = fault.kind == "power-cut" and Told.now(running).resets > self.resets
        said = f"fault: {fault.kind}".encode() in _console(running)[self.console :]
        return cut or said or (fault.leaves_itself and not committed)

    def lost_since(self, running: qemu.Qemu) -> tuple[str, ...]:
        """The faults that the virtual host asked for, and that struck nobody."""
        return tuple(_lost(running)[self.lost :])

    def uncut_since(self, fault: Fault | None, running: qemu.Qemu) -> bool:
        """Whether the power was to be cut and was not, wherever the fault's file is now."""
        return fault is not None and fault.kind == "power-cut" and Told.now(running).resets == self.resets


def _lost(running: qemu.Qemu) -> list[str]:
    return [event.detail for event in running.events if event.name == _LOST]


def _console(running: qemu.Qemu) -> bytes:
    with contextlib.suppress(FileNotFoundError):  # of a machine without one
        return (running.state / "serial2.log").read_bytes()
    return b""

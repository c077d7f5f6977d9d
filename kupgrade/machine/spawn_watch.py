"""An eye on a spawned kernel: its hello, its heartbeat, its end; and the talk with its agent."""

from __future__ import annotations

import mmap
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.shared_window import SharedWindow
from kupgrade.kernel.window import Channel, Side
from kupgrade.machine import spawn_box
from kupgrade.machine.pulse import Pulse
from kupgrade.machine.standby_client import StandbyClient
from kupgrade.model.spawn import Instance, Standby

POLL = 0.005  # seconds
STALL = 3.0  # seconds without a heartbeat in the blackout: an emulated or overloaded host may well take one
GUARD_PATIENCE = 0.1  # seconds from what a guard sees to its event: it stops the CPUs first


@dataclass
class Watch:
    """Window and control area of an instance, mapped: until `close` its memory cannot go back.

    A reset or power-off is seen at once where the spawner of the same device has set its guard, and else by the
    registers, when the new kernel may have done worse already.
    """

    device: Kspawn
    instance: Instance
    window: SharedWindow
    _mapping: mmap.mmap
    _control: memoryview
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def open(
        cls,
        device: Kspawn,
        instance: Instance,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Watch:
        """Raises KernelError, and BadInputError when there is no window of this upgrade."""
        window = SharedWindow.open(device, instance.window, Side.OLD, instance.upgrade, instance.epoch)
        area = spawn_box.control_area(instance)
        try:
            mapping = device.map(area.start, area.size, writable=False)
        except KernelError:
            window.close()
            raise
        return cls(device, instance, window, mapping, memoryview(mapping), pause, clock)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap everything. Nobody may hold a view of the window's `files` any more."""
        self._control.release()
        self._mapping.close()
        self.window.close()

    @property
    def channel(self) -> Channel:
        """The old kernel's end of the channel."""
        return self.window.channel

    def pulse(self, limit: float) -> Pulse:
        """Who says when its heartbeat has stood still for `limit` seconds, from now on."""
        return Pulse(self.beats, limit, self.clock)

    def client(self, pulse: Pulse | None = None) -> StandbyClient:
        """Who asks its agent; with a `pulse` not even an answer is waited for when that stops."""

        def alive() -> None:
            self.check_alive()
            if pulse is not None:
                pulse.check()

        return StandbyClient(self.channel, alive, self.pause, self.clock)

    def parked(self) -> tuple[int, ...]:
        """The APIC IDs of the CPUs that wait in the park loop: not started yet, taken offline there, or halted."""
        return spawn_box.parked(self._control, self.instance)

    def registers(self) -> tuple[int, int]:
        """Its reset and its sleep control register as it left them; 0 and 0 while it wants neither."""
        return spawn_box.registers(self._control, self.instance)

    def beats(self) -> int:
        """Its heartbeat; one that stands still is a kernel, or an agent, that does not run."""
        return self.channel.heartbeat(Side.NEW)

    def await_hello(self, timeout: float) -> Standby:
        """Wait up to `timeout` seconds for its agent. Raises KupgradeError that says what was seen instead."""
        began, before = self.clock(), self.beats()
        while self.clock() - began < timeout:
            hello = self.channel.hello_of(Side.NEW)
            if hello is not None and hello.epoch == self.instance.epoch and self.beats() != before:
                return Standby(hello.boot_id, hello.release, round(self.clock() - began, 3))
            self.check_alive()
            self.pause(POLL)
        raise KupgradeError(
            "The new kernel did not answer",
            f"no word from its agent within {timeout:g} s",
            "Start it with a serial port of its own and read what it says",
        )

    def await_settled(self, seconds: float) -> None:
        """Look at a kernel without an agent for `seconds`. Raises KupgradeError when it ends meanwhile."""
        began = self.clock()
        while self.clock() - began < seconds:
            self.check_alive()
            self.pause(POLL)

    def check_alive(self) -> None:
        """Raises KupgradeError when it is known to be dead: panic, reset, power-off, halt."""
        if self.channel.panic:
            raise KupgradeError("The new kernel panicked", f"its panic flag says {self.channel.panic:#x}")
        reset, sleep = self.registers()
        if reset or sleep:
            wish, why = "a reset" if reset else "power off", "no guard was set: it may have done worse"
            if select.select([self.device.fd], [], [], GUARD_PATIENCE)[0]:
                why = f"the guard stopped {self.device.read_event().nr_stopped} CPUs"
            raise KupgradeError(f"The new kernel wanted {wish}", why)
        if set(self.instance.apic_ids) <= set(self.parked()):
            raise KupgradeError("The new kernel halted", "all its CPUs wait in the park loop")

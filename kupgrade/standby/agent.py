"""The agent in a spawned kernel: says hello through the shared window, beats, answers until it is told to end.

It knows all it needs from its command line: the ticket, where the window is, which parameters its kspawn takes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import command
from kupgrade.kernel import kspawn
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.libc import read_text
from kupgrade.kernel.shared_window import SharedWindow
from kupgrade.kernel.window import PANIC_FLAG, Channel, Side, Verdict
from kupgrade.model import standby
from kupgrade.model.ids import TICKET_PARAMETER, Ticket
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import MODULE, WINDOW_PARAMETER, parse_range
from kupgrade.model.standby import Answer, Request
from kupgrade.standby import takeover, verbs
from kupgrade.standby.verbs import Here, Verb

POLL = 0.0005  # seconds between looks for a message
IDLE_POLL = 0.005  # the same, when none has come for a while
IDLE_AFTER = 2.0
BEAT = 0.02
TEND = 0.5  # the same, for its child; the old kernel's question does so sooner, as long as it asks
PANIC_VALUE = 1
VERBS: dict[str, Verb] = {**verbs.VERBS, **takeover.VERBS}
MODULE_FILES = "usr/lib/kupgrade/kspawn.ko*"  # in the standby initramfs


@dataclass(frozen=True, slots=True)
class Duty:
    """What the command line says: for which upgrade and epoch, and where the window is."""

    ticket: Ticket
    window: MemoryRange
    module_parameters: tuple[str, ...]


def duty(cmdline: CommandLine) -> Duty:
    """Read it. Raises BadInputError when this kernel was not started beside another one."""
    ticket, window = cmdline.get(TICKET_PARAMETER), cmdline.get(WINDOW_PARAMETER)
    if ticket is None or window is None:
        raise BadInputError("This kernel was not started beside another one", "its command line names no window")
    given = cmdline.module_parameters(MODULE)
    return Duty(Ticket.parse(ticket), parse_range(window), tuple(f"{name}={value}" for name, value in given.items()))


def load_module(parameters: tuple[str, ...], root: Path = Path("/")) -> None:
    """Load kspawn unless it is there. Raises BadInputError when the initramfs holds none, ToolError."""
    if (root / kspawn.DEVICE).exists():
        return
    found = sorted(root.glob(MODULE_FILES))
    if not found:
        raise BadInputError(f"There is no {root / MODULE_FILES}", "the standby initramfs was built without it")
    command.run(["insmod", str(found[0]), *parameters])


def beat(channel: Channel, parent: int) -> None:
    """The heartbeat, in a process of its own: it stops with the agent and with this kernel, and with nothing else."""
    while os.getppid() == parent:
        channel.beat()
        time.sleep(BEAT)
    os._exit(0)


def start_beating(channel: Channel) -> int:
    """Fork the heartbeat; returns its PID."""
    agent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            beat(channel, agent)
        finally:
            os._exit(1)
    return child


@dataclass
class Agent:
    """Answers requests from the channel. `pause` and `clock` as in time."""

    channel: Channel
    here: Here
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _last: float = field(default=0.0)
    _tended: float = field(default=0.0)

    def serve(self) -> None:
        """Until it is told to stop."""
        self._last = self.clock()
        while self.step():
            pass

    def step(self) -> bool:
        """Answer one request, or wait a moment; False once told to stop."""
        found = self.channel.take()
        if found.verdict is Verdict.FOREIGN:
            self.channel.discard()
        if found.verdict is not Verdict.MESSAGE or found.message is None:
            if self.clock() - self._tended > TEND:
                self._tended = self.clock()
                with contextlib.suppress(KupgradeError, OSError):
                    takeover.tend(self.here)
            brisk = self.clock() - self._last < IDLE_AFTER and takeover.Child.order is None
            self.pause(POLL if brisk else IDLE_POLL)  # once the restore is at work it needs the processors
            return True
        self._last = self.clock()
        try:
            request = standby.unpack_request(found.message.payload)
        except BadInputError as error:
            self._send(Answer(0, error=error.what, why=error.why))
            return True
        self._send(self._answer(request))
        return request.verb != standby.STOP

    def _answer(self, request: Request) -> Answer:
        verb = VERBS.get(request.verb)
        if verb is None:
            return Answer(request.number, error=f"{request.verb!r:.40} is no request", why="it is not known here")
        try:
            return Answer(request.number, result=verb(self.here, request.arguments))
        except KupgradeError as error:
            return Answer(request.number, error=error.what, why=error.why)
        except Exception as error:  # an agent that dies of one request answers no other
            return Answer(request.number, error=type(error).__name__, why=str(error))

    def _send(self, answer: Answer) -> None:
        while self.channel.send(standby.pack(answer)) is None:
            self.pause(POLL)


def open_window(device: Kspawn, duty_: Duty) -> SharedWindow:
    """Map the window and have a panic of this kernel write its flag there."""
    device.set_panic_flag(duty_.window.start + PANIC_FLAG, PANIC_VALUE)
    return SharedWindow.open(device, duty_.window, Side.NEW, duty_.ticket.upgrade, duty_.ticket.epoch)


def main(root: Path = Path("/")) -> int:
    """The agent's life; what goes wrong before its hello goes to stderr, which is the kernel's log."""
    try:
        found = duty(CommandLine.parse(read_text(root / "proc/cmdline")))
        load_module(found.module_parameters, root)
        device = kspawn.open_device(root)
        window = open_window(device, found)
        channel = window.channel
        boot_id = read_text(root / "proc/sys/kernel/random/boot_id").strip()
        channel.say_hello(boot_id, os.uname().release)
        beater = start_beating(channel)
        Agent(channel, Here(device, root, beater, window)).serve()
    except KupgradeError as error:
        sys.stderr.write(f"kupgrade: {error}\n")
        return int(error.code)
    return 0

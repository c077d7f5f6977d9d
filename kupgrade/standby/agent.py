"""The agent in a spawned kernel: says hello through the shared window, beats, answers until it is told to end.

It knows all it needs from its command line: the ticket, where the window is, which parameters its kspawn takes.

It is forked from a keeper, which has imported everything and only waits: an agent that is killed in the blackout is
there again in a moment. Once it has begun to take over what it knew is lost with it, and the heartbeat stands still:
the old kernel takes everything back. Was the commit faster than that, another one serves from then on what is left to
ask: without it the old kernel could never leave.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import command, criu
from kupgrade.kernel import kspawn
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.libc import read_text
from kupgrade.kernel.shared_window import SharedWindow
from kupgrade.kernel.window import Channel, Side, Verdict
from kupgrade.kernel.window_format import PANIC_FLAG
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
BUSY_POLL = 0.02  # and while a restore is at work, which needs the processors
IDLE_AFTER = 0.05  # seconds; the dump beside it needs the processors, too
BEAT = 0.02
TEND = 0.5  # the same, for its child; the old kernel's question does so sooner, as long as it asks
AGAIN, AGAIN_AT_MOST = 0.005, 1.0  # seconds until an agent that was killed is started again, doubled each time
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


def beat(channel: Channel, parent: int, taking_over: Callable[[], bool]) -> None:
    """The heartbeat, in a process of its own. Before the commit it stops with the agent and with this kernel.

    After it with this kernel alone: there is no way back any more, and workloads serve without an agent, too.
    """
    while True:
        if os.getppid() == parent or channel.committed:
            channel.beat()
        elif not taking_over():  # the next agent brings its own
            os._exit(0)
        time.sleep(BEAT)


def start_beating(channel: Channel, taking_over: Callable[[], bool]) -> int:
    """Fork the heartbeat; returns its PID."""
    agent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            beat(channel, agent, taking_over)
        finally:
            os._exit(1)
    return child


@dataclass
class Agent:
    """Answers requests from the channel. `pause` and `clock` as in time; `alone`: another may take its place."""

    channel: Channel
    here: Here
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    alone: Callable[[], bool] = lambda: False
    _last: float = field(default=0.0)
    _tended: float = field(default=0.0)

    def serve(self) -> None:
        """Until it is told to stop."""
        self._last = self.clock()
        while self.step():
            pass

    def _rest(self) -> float:
        if takeover.Child.order is not None:
            return BUSY_POLL
        return POLL if self.clock() - self._last < IDLE_AFTER else IDLE_POLL

    def step(self) -> bool:
        """Answer one request, or wait a moment; False once told to stop, or when its keeper is gone."""
        found = self.channel.take()
        if found.verdict is Verdict.FOREIGN:
            self.channel.discard()
        if found.verdict is not Verdict.MESSAGE or found.message is None:
            if self.clock() - self._tended > TEND:
                self._tended = self.clock()
                with contextlib.suppress(KupgradeError, OSError):
                    takeover.tend(self.here)
                if self.alone():
                    return False
            self.pause(self._rest())
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


@dataclass(frozen=True, slots=True)
class Keeper:
    """Forks the agent, and again when it was killed. `run`: descriptor of /run/kupgrade, which moves with its mount.

    `follow`: brings an agent that begins after the commit into the root that everything works in.
    """

    device: Kspawn
    duty: Duty
    root: Path
    run: int
    follow: Callable[[], None]

    def keep(self) -> int:
        """The exit status of the last agent."""
        pause, late = AGAIN, False
        while True:
            pid = os.fork()
            if pid == 0:
                self._live(late)
            with contextlib.suppress(KupgradeError):
                criu.preload()  # while the first one works: the next ones have no time for it
            status = os.waitpid(pid, 0)[1]
            if not os.WIFSIGNALED(status):
                return os.waitstatus_to_exitcode(status)
            late = self.taking_over()
            when = "another one serves after the commit" if late else "it is started again"
            sys.stderr.write(f"kupgrade: the agent was killed, {when}\n")
            sys.stderr.flush()
            time.sleep(pause)
            pause = min(2 * pause, AGAIN_AT_MOST)

    def taking_over(self) -> bool:
        """Whether an agent has begun to."""
        try:
            os.stat(takeover.TAKEN_OVER, dir_fd=self.run)
        except FileNotFoundError:
            return False
        return True

    def _live(self, late: bool) -> NoReturn:
        keeper, code = os.getppid(), 1
        try:
            if late:
                self._serve_late()
            else:
                self._serve(lambda: os.getppid() != keeper and not self.taking_over())
            code = 0
        except KupgradeError as error:
            sys.stderr.write(f"kupgrade: {error}\n")
            code = int(error.code)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _serve(self, alone: Callable[[], bool]) -> None:
        """One agent at a time: an earlier one, and its heartbeat, hold the lock until they are gone."""
        held = os.open("agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.run)
        fcntl.flock(held, fcntl.LOCK_EX)
        window = self._window()
        channel = window.channel
        channel.begin()
        channel.say_hello(read_text(self.root / "proc/sys/kernel/random/boot_id").strip(), os.uname().release)
        beater = start_beating(channel, self.taking_over)
        Agent(channel, Here(self.device, self.root, beater, window), alone=alone).serve()

    def _serve_late(self) -> None:
        """Nothing before the commit: if there is none the old kernel ends this one. The heartbeat goes on by itself."""
        window = self._window()
        while not window.channel.committed:
            time.sleep(BUSY_POLL)
        self.follow()
        window.channel.begin()
        here = Here(self.device, self.root, window=window)
        try:
            here.heir.resume()
        except KupgradeError as error:  # the old kernel asks again
            sys.stderr.write(f"kupgrade: {error}\n")
        Agent(window.channel, here).serve()

    def _window(self) -> SharedWindow:
        ticket = self.duty.ticket
        return SharedWindow.open(self.device, self.duty.window, Side.NEW, ticket.upgrade, ticket.epoch)


def main(root: Path = Path("/")) -> int:
    """The life of the agent's keeper; what goes wrong before the hello goes to stderr, which is the kernel's log."""
    try:
        found = duty(CommandLine.parse(read_text(root / "proc/cmdline")))
        load_module(found.module_parameters, root)
        device = kspawn.open_device(root)
        device.set_panic_flag(found.window.start + PANIC_FLAG, PANIC_VALUE)
    except KupgradeError as error:
        sys.stderr.write(f"kupgrade: {error}\n")
        return int(error.code)
    run, proc = (os.open(root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for name in ("run/kupgrade", "proc"))
    return Keeper(device, found, root, run, lambda: takeover.follow(proc)).keep()

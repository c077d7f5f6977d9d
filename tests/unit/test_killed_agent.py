"""An agent that is killed over a request: another one is there at once, and nothing is done twice that may not be."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.kernel.window import Channel, Side, Verdict
from kupgrade.kernel.window_format import channel_size, format_window
from kupgrade.machine.pulse import LOOK, Pulse
from kupgrade.machine.standby_client import StandbyClient
from kupgrade.model import standby
from kupgrade.model.ids import Ticket, UpgradeId
from kupgrade.model.machine import MemoryRange
from kupgrade.model.standby import Answer
from kupgrade.standby import agent
from kupgrade.standby.agent import Duty, Keeper

UPGRADE = UpgradeId("20261121-041503-9f2c1a")
T = TypeVar("T")


class Agents:
    """One agent after the other at the new end; each step of `life` is made at one pause of the asker."""

    def __init__(self, life: str) -> None:
        self.buffer = memoryview(bytearray(channel_size()))
        format_window(self.buffer, UPGRADE)
        self.old = Channel(self.buffer, Side.OLD, UPGRADE, 2)
        self.did: list[str] = []
        self.life = iter([*life.split(), *["works"] * 3])
        self.new = self.another()
        self.held: Answer | None = None

    def another(self) -> Channel:
        found = Channel(self.buffer, Side.NEW, UPGRADE, 2)
        found.begin()
        return found

    def pause(self, _: float) -> None:
        match next(self.life):
            case "takes":
                self.take()
            case "answers":
                self.answer()
            case "killed":
                self.new, self.held = self.another(), None
            case "works":
                self.take()
                self.answer()

    def take(self) -> None:
        found = self.new.take()
        if found.verdict is Verdict.MESSAGE and found.message is not None:
            request = standby.unpack_request(found.message.payload)
            self.did.append(request.verb)
            self.held = Answer(request.number, {"by": len(self.did)})

    def answer(self) -> None:
        if self.held is not None:
            self.new.send(standby.pack(self.held))
            self.held = None


@pytest.mark.parametrize(
    ("life", "verb", "did"),
    [
        ("works", standby.INHERIT, 1),
        ("killed works", standby.INHERIT, 1),  # not taken: the next one does it, once
        ("killed killed works", standby.RECEIVE, 1),
        ("takes killed works", standby.RECEIVE, 2),
        ("takes killed takes killed works", standby.STAGE, 3),
        ("takes killed works", standby.TAKE_OVER, 2),
        ("takes killed works", standby.INHERIT, 0),
        ("takes killed works", standby.LOAD_SSDT, 0),
        ("takes killed killed", standby.LOAD_SSDT, 0),
    ],
)
def test_a_killed_agent_is_asked_again_where_that_makes_no_difference(life: str, verb: str, did: int) -> None:
    """At once, not after the timeout (0: it is not); a request that nobody took is never sent twice."""
    agents = Agents(life)
    client = StandbyClient(agents.old, lambda: None, agents.pause, lambda: 0.0)
    if did:
        assert client.ask(verb) == {"by": did}
        assert agents.did == [verb] * did
    else:
        with pytest.raises(KupgradeError, match="killed"):
            client.ask(verb)
        assert agents.did == [verb]


def test_the_last_word_of_a_killed_agent_counts() -> None:
    """It had answered: nothing is asked again."""
    agents = Agents("")

    def pause(_: float) -> None:
        agents.take()
        agents.answer()
        agents.new = agents.another()

    assert StandbyClient(agents.old, lambda: None, pause, lambda: 0.0).ask(standby.INHERIT) == {"by": 1}
    assert agents.did == [standby.INHERIT]


@pytest.mark.parametrize(
    ("beats", "step", "dies_at"),
    [
        ([1], 0.5, 3.5),
        ([1, 1, 1, 2, 2, 2], 1.0, 7.0),
        (range(1, 100), 1.0, None),
        ([1], 30.0, 120.0),  # whoever is stopped for half a minute has looked once, not for half a minute
    ],
)
def test_a_pulse_counts_the_time_it_was_looked_at(beats: list[int], step: float, dies_at: float | None) -> None:
    """Nothing for more than three seconds of looking is a kernel that stands still."""
    now, seen = [0.0], [*beats] + [[*beats][-1]] * 100
    pulse = Pulse(lambda: seen.pop(0), 3.0, lambda: now[0])
    for _ in range(90):
        now[0] += step
        try:
            pulse.check()
        except KupgradeError:
            break
        if len(seen) < 5:
            now[0] = -1.0
            break
    assert now[0] == (dies_at if dies_at is not None else now[0])
    assert LOOK <= 1.0
    pulse.answered()
    now[0] += 1.0
    pulse.check()


class Device:
    """A kspawn whose memory is a file."""

    def __init__(self, folder: Path) -> None:
        self.file = os.open(folder / "memory", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.file, channel_size())

    def map(self, address: int, length: int, *, writable: bool = True) -> mmap.mmap:
        return mmap.mmap(self.file, length, offset=address)


class Kept:
    """A keeper at work in a process of its own; the old kernel's end of its window."""

    def __init__(self, folder: Path) -> None:
        device = Device(folder)
        format_window(memoryview(mmap.mmap(device.file, channel_size())), UPGRADE)
        self.channel = Channel(memoryview(device.map(0, channel_size())), Side.OLD, UPGRADE, 1)
        self.run = folder / "run/kupgrade"
        self.run.mkdir(parents=True)
        for name in ("proc/sys/kernel/random/boot_id", "proc/cmdline"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("boot")
        duty = Duty(Ticket(UPGRADE, 1), MemoryRange(0, channel_size()), ())
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            run, follow = os.open(self.run, os.O_RDONLY), (self.run / "followed").touch
            os._exit(Keeper(device, duty, folder, run, follow).keep())  # type: ignore[arg-type]

    def children(self, pid: int) -> list[int]:
        try:
            return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def agent(self) -> int:
        return await_(lambda: self.children(self.pid))[0]

    def ask(self, verb: str = standby.PING) -> dict[str, object]:
        return StandbyClient(self.channel, lambda: None).ask(verb, 10.0)

    def beats(self) -> bool:
        before = self.channel.heartbeat(Side.NEW)
        time.sleep(10 * agent.BEAT)
        return self.channel.heartbeat(Side.NEW) != before


def await_(there: Callable[[], T]) -> T:
    deadline = time.monotonic() + 10
    while not (found := there()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    found = Kept(tmp_path)
    yield found
    try:
        os.killpg(found.pid, signal.SIGKILL)
        os.waitpid(found.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_killed_agent_is_there_again(kept: Kept) -> None:
    """With a hello and a heartbeat; told to stop it ends, and its keeper with it."""
    kept.ask()
    for begun in (1, 2):
        assert kept.channel.begun(Side.NEW) == begun
        os.kill(kept.agent(), signal.SIGKILL)
        kept.ask()
    assert kept.beats()
    kept.ask(standby.STOP)
    assert os.waitpid(kept.pid, 0)[1] == 0
    assert not kept.beats()


def test_once_it_takes_over_another_serves_after_the_commit_only(kept: Kept) -> None:
    """What the first one knew is lost: its heartbeat stops with it, and nothing is answered. If there is a commit all
    the same the heartbeat goes on, and what is left is answered: in the root where everything works, and once more.
    """
    kept.ask()
    (kept.run / "taken-over").touch()
    first = kept.agent()
    os.kill(first, signal.SIGKILL)
    await_(lambda: kept.agent() != first)
    time.sleep(3 * agent.BEAT)
    assert not kept.beats() and kept.channel.begun(Side.NEW) == 1 and not (kept.run / "followed").exists()
    Channel(kept.channel._buffer, Side.NEW, UPGRADE, 1).declare_commit()
    kept.ask()
    assert kept.beats() and kept.channel.begun(Side.NEW) == 2 and (kept.run / "followed").exists()
    os.kill(kept.agent(), signal.SIGKILL)
    kept.ask()
    assert kept.beats() and kept.channel.begun(Side.NEW) == 3
    kept.ask(standby.STOP)
    assert os.waitpid(kept.pid, 0)[1] == 0


def test_an_agent_without_its_keeper_makes_room_for_the_next(kept: Kept) -> None:
    """There would be two of them soon: the first process starts a keeper again."""
    kept.ask()
    left = kept.agent()
    os.kill(kept.pid, signal.SIGKILL)
    os.waitpid(kept.pid, 0)
    await_(lambda: not Path(f"/proc/{left}").exists() or "Z" in Path(f"/proc/{left}/stat").read_text())
    assert not kept.beats()

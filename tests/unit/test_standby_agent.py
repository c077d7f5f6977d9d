"""The agent in a spawned kernel: what it reads from its command line, how it answers."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel.window import Channel, Side
from kupgrade.kernel.window_format import channel_size, format_window
from kupgrade.model import standby
from kupgrade.model.ids import Ticket, UpgradeId
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange
from kupgrade.model.standby import Answer, Request
from kupgrade.standby import agent
from kupgrade.standby.agent import Agent
from kupgrade.standby.verbs import Here

UPGRADE = UpgradeId("20261121-041503-9f2c1a")
LINE = f"quiet kspawn.bsp=0 kspawn.trampoline=0x20000 kupgrade.window=0x1000:0x200000 kupgrade.ticket={UPGRADE}:2"


class Device:
    def __init__(self) -> None:
        self.tables: list[bytes] = []

    def load_ssdt(self, table: bytes) -> None:
        if table == b"bad":
            raise KernelError("KSPAWN_ACPI", "", 22)
        self.tables.append(table)


class Talk:
    """Both ends of a window: `ask` puts a request, lets the agent step, and gives its answer."""

    def __init__(self, root: Path) -> None:
        buffer = memoryview(bytearray(channel_size()))
        format_window(buffer, UPGRADE)
        self.old, self.new = (Channel(buffer, side, UPGRADE, 2) for side in Side)
        self.device = Device()
        self.pauses: list[float] = []
        self.agent = Agent(self.new, Here(self.device, root), self.pauses.append, lambda: 0.0)  # type: ignore[arg-type]

    def ask(self, verb: str, **arguments: object) -> Answer:
        self.old.send(standby.pack(Request(7, verb, arguments)))
        self.goes_on = self.agent.step()
        found = self.old.take().message
        assert found is not None
        return standby.unpack_answer(found.payload)


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path)


def test_the_command_line_says_it_all() -> None:
    """Ticket, window, and the parameters for its own kspawn."""
    found = agent.duty(CommandLine.parse(LINE))
    assert found == agent.Duty(Ticket(UPGRADE, 2), MemoryRange(0x1000, 0x200000), ("bsp=0", "trampoline=0x20000"))


def test_an_ordinary_kernel_has_no_duty() -> None:
    """There the agent ends with an error."""
    with pytest.raises(BadInputError, match="not started beside"):
        agent.duty(CommandLine.parse("quiet"))


def test_the_module_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its parameters, from wherever the initramfs has it; not when the device is there."""
    ran: list[list[str]] = []
    monkeypatch.setattr("kupgrade.host.command.run", ran.append)
    with pytest.raises(BadInputError, match="kspawn"):
        agent.load_module(("bsp=0",), tmp_path)
    place = tmp_path / "usr/lib/kupgrade"
    place.mkdir(parents=True)
    (place / "kspawn.ko.xz").touch()
    agent.load_module(("bsp=0",), tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kspawn").touch()
    agent.load_module(("bsp=0",), tmp_path)
    assert ran == [["insmod", str(place / "kspawn.ko.xz"), "bsp=0"]]


def test_requests_are_answered_with_their_number(talk: Talk) -> None:
    """And the agent goes on, until it is told to stop."""
    answer = talk.ask("ping")
    assert (answer.number, answer.error) == (7, "")
    assert answer.result["monotonic"] > 0
    assert talk.goes_on
    talk.ask("stop")
    assert not talk.goes_on


def test_a_command_is_run_in_an_instance_only(talk: Talk, tmp_path: Path) -> None:
    """Its status and what it said, as much of it as fits into a message; an upgrade's kernel refuses."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text(LINE)
    assert "No command" in talk.ask("run-command", command="true").error
    (tmp_path / "proc/cmdline").write_text(f"{LINE} kupgrade.instance=rt")
    assert talk.ask("run-command", command="echo a; echo b >&2; exit 3").result == {"status": 3, "said": "a\nb\n"}
    much = talk.ask("run-command", command="head -c 200000 /dev/zero | tr '\\0' '\\001'; echo end").result
    assert much["said"].endswith("end\n") and 1000 < len(much["said"]) < 50000


def test_what_goes_wrong_comes_back_as_an_error(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown verbs, wrong arguments, refusals of the kernel, bugs: none of them ends the agent."""
    assert "no request" in talk.ask("dance").error
    assert "names" in talk.ask("modules", names="nf_tables").error
    assert "table" in talk.ask("load-ssdt", table="%").error
    bad = talk.ask("load-ssdt", table=base64.b64encode(b"bad").decode())
    assert (bad.error, bad.why) == ("KSPAWN_ACPI failed", "EINVAL")
    assert talk.ask("status").error
    monkeypatch.setitem(agent.VERBS, "ping", lambda *_: 1 / 0)
    assert talk.ask("ping").error == "ZeroDivisionError"
    talk.old.send(b"{")
    talk.agent.step()
    found = talk.old.take().message
    assert found is not None
    assert standby.unpack_answer(found.payload).error


def test_a_table_is_loaded(talk: Talk) -> None:
    """As it was sent."""
    assert talk.ask("load-ssdt", table=base64.b64encode(b"SSDT...").decode()).result == {"length": 7}
    assert talk.device.tables == [b"SSDT..."]


def test_a_message_of_another_epoch_is_not_obeyed(talk: Talk) -> None:
    """It is put aside, so that later ones can be read."""
    stale = Channel(talk.old._buffer, Side.OLD, UPGRADE, 1)
    stale.send(standby.pack(Request(1, "stop")))
    assert talk.agent.step()
    talk.old = Channel(talk.old._buffer, Side.OLD, UPGRADE, 2)
    assert talk.ask("ping").number == 7


def test_an_idle_agent_looks_less_often(talk: Talk) -> None:
    """The CPU is somebody else's as well; the first requests are answered at once."""
    talk.agent.step()
    talk.agent.clock = lambda: 100.0
    talk.agent.step()
    assert talk.pauses == [agent.POLL, agent.IDLE_POLL]


def test_status_tells_of_the_kernel(talk: Talk, tmp_path: Path) -> None:
    """What the old kernel checks before it hands anything over."""

    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    put("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 500 kB\n")
    put("proc/sys/kernel/random/boot_id", "abc\n")
    put("proc/uptime", "12.5 20.0\n")
    put("proc/modules", "nf_tables 1 0 - Live 0x0\n")
    for name in ("online", "present", "possible"):
        put(f"sys/devices/system/cpu/{name}", "0-1\n")
    result = talk.ask("status").result
    assert (result["memory"], result["available"], result["online"]) == (1024000, 512000, "0-1")
    assert (result["boot_id"], result["uptime"], result["modules"]) == ("abc", 12.5, ["nf_tables"])


def test_an_idle_agent_looks_after_its_child(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then, not at each look: a killed child is started again although nobody asks."""
    tended: list[object] = []
    monkeypatch.setattr(agent.takeover, "tend", tended.append)
    for now in (1.0, 1.1, 1.2, 2.0):
        talk.agent.clock = lambda now=now: now
        talk.agent.step()
    assert len(tended) == 2

"""The old kernel ends in favour of the one beside it, which comes into its CPUs, its memory and its last devices."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import qemu, spawn_module, virtual_host
from kupgrade.rehearsal.cache import Cache
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.suites import Archive, mirror
from tests.vm import retire_inside
from tests.vm.conftest import say

pytestmark = pytest.mark.vm

PATIENCE = 240.0  # seconds from the script's start to the new kernel's last word
COMPLAINT = re.compile(r"WARNING:|BUG:|Oops|Call Trace|rcu: INFO|No irq handler|Kernel panic")


@dataclass(frozen=True)
class Beside:
    """A virtual host with four CPUs and kspawn for both kernels in /root."""

    link: Link
    state: Path
    release: str
    network: Network

    def said(self, name: str) -> str:
        return (self.state / name).read_text(errors="replace")


NEWER, OLDER = ("trixie", "trixie-backports"), ("trixie-backports", "trixie")


@pytest.fixture
def beside(request: pytest.FixtureRequest) -> Iterator[Beside]:
    """The new kernel is newer, or older, than the one that it is started beside."""
    try:
        host = virtual_host.build(*request.param, say, line=virtual_host.command_line("no_ipi_broadcast=1"))
        archive = Archive(Cache.default(), mirror())
        built = [spawn_module.for_release(archive, each) for each in (host.old_release, host.new_release)]
    except KupgradeError as error:
        if "vm" in os.environ.get("KUPGRADE_REQUIRE", ""):
            raise
        pytest.skip(f"no virtual host here: {error}")
    with ExitStack() as stack:
        state = qemu.run_directory()
        network = Network.create()
        stack.callback(network.close)
        running = qemu.start(host.tools, host.machine(6144, 4), state, network.tap())
        stack.callback(running.stop)
        link = stack.enter_context(closing(Link(state / "agent")))
        link.wait_boot(240.0)
        for name, module in zip(("own", "other"), built, strict=True):
            link.write(f"/root/{name}.ko", module.read_bytes())
        link.write("/root/retire_inside.py", Path(retire_inside.__file__).read_bytes())
        yield Beside(link, state, host.new_release, network)


def until(found: Callable[[], bool], timeout: float, why: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < deadline, why()
        time.sleep(0.2)


def told(text: str) -> dict[str, Any]:
    """What the old kernel's script said, up to its end."""
    found: dict[str, Any] = {}
    for match in re.finditer(r"RETIRE (\{.*\})", text):
        found |= json.loads(match[1])
    return found


def last_word(text: str) -> bool:
    return re.search(r"\n[ 0-9.]*END", text.replace("\r", "")) is not None


def inherited(text: str, before: dict[str, Any], online: tuple[str, str]) -> None:
    """Check what a spawned kernel said on its port; `before`: what the kernel before it said of itself."""
    match = re.search(r"INHERITED (\{.*\})", text)
    assert match, text[-3000:]
    found = json.loads(match[1])
    print(json.dumps(before), json.dumps(found), sep="\n")
    assert (found["stage"], found["missing"]) == ("done", [])
    assert (found["cpus_before"], found["cpus"]) == online
    assert "ONLINE 0-3 0-3" in text
    assert found["memory"] >= 0.9 * int(before["facts"]["meminfo"]) * 1024
    assert re.search(r"PCI 0001:\S+\s+(?:[ 0-9.]+ )?0002:\S+", text), text[-3000:]
    assert not [line for line in text.splitlines() if COMPLAINT.search(line)]


def run(host: Beside, *further: str) -> tuple[str, str]:
    """Both serial ports' logs once the last kernel has said its last word."""
    words = ["/usr/bin/python3", "/root/retire_inside.py", "first", host.release, "/root/own.ko", "/root/other.ko"]
    done = host.link.run(["systemd-run", "--unit=retire", "--collect", *words, *further], timeout=60.0)
    assert done.status == 0, done.stderr
    ports = ("serial.log", "serial2.log")

    def report() -> str:
        return "\n".join(host.said(port)[-4000:] for port in ports)

    def finished() -> bool:
        assert not any("failed" in told(host.said(port)) for port in ports), report()
        return last_word(host.said(ports[0 if further else 1]))

    until(finished, PATIENCE * (1 + len(further)), report)
    return host.said(ports[0]), host.said(ports[1])


@pytest.mark.parametrize("beside", [OLDER], ids=["older"], indirect=True)
def test_the_old_kernel_leaves_everything_to_the_new_one(beside: Beside) -> None:
    """All CPUs, nearly all memory, NIC and control port; the new kernel has no complaint and answers on the network.

    The old one's disk stands still by then, and somebody there waits for it.
    """
    old, new = run(beside)
    # Its CPUs 0 to 3 are those that were 3, 0, 1 and 2; the last one rested, and is brought online by hand.
    inherited(new, told(old), ("0", "0-2"))
    with pytest.raises(ConnectionRefusedError):  # by the new kernel, where nobody listens
        beside.network.connect(1, 10.0)


@pytest.mark.parametrize("beside", [NEWER], ids=["newer"], indirect=True)
def test_the_new_kernel_leaves_in_its_turn(beside: Beside) -> None:
    """The third kernel has all that the first had; one that was fenced before had given everything back."""
    old, new = run(beside, "again")
    first, second = told(old), told(new)
    inherited(new, first, ("0", "0-2"))
    assert second["given back"]["kept"]
    # Its CPUs 0 to 3 were 3, 0, 1 and 2 of the second, where 1 was the bootstrap processor.
    inherited(old.split('"2 buses"')[1], second, ("0", "0-3"))
    with pytest.raises(ConnectionRefusedError):
        beside.network.connect(1, 10.0)

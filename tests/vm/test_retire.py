"""The old kernel ends in favour of the one beside it, which comes into its CPUs, its memory and its last devices."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.vm import retire_inside
from tests.vm.hosts import NEWER, OLDER, Guest, with_module

pytestmark = pytest.mark.vm

PATIENCE = 240.0  # seconds from the script's start to the new kernel's last word
COMPLAINT = re.compile(r"WARNING:|BUG:|Oops|Call Trace|rcu: INFO|No irq handler|Kernel panic")


@pytest.fixture
def beside(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """The new kernel is newer, or older, than the one that it is started beside."""
    with with_module(request.param, 6144) as guest:
        guest.push(retire_inside)
        yield guest


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


def run(host: Guest, *further: str) -> tuple[str, str]:
    """Both serial ports' logs once the last kernel has said its last word."""
    words = ["/usr/bin/python3", "/opt/retire_inside.py", "first", host.release, "/opt/own.ko", "/opt/other.ko"]
    done = host.link.run(["systemd-run", "--unit=retire", "--collect", *words, *further], timeout=60.0)
    assert done.status == 0, done.stderr
    ports = ("serial.log", "serial2.log")

    def report() -> str:
        return "\n".join(host.log(port)[-4000:] for port in ports)

    def finished() -> bool:
        assert not any("failed" in told(host.log(port)) for port in ports), report()
        return last_word(host.log(ports[0 if further else 1]))

    until(finished, PATIENCE * (1 + len(further)), report)
    return host.log(ports[0]), host.log(ports[1])


@pytest.mark.extended
@pytest.mark.parametrize("beside", [OLDER], ids=["older"], indirect=True)
def test_the_old_kernel_leaves_everything_to_the_new_one(beside: Guest) -> None:
    """All CPUs, nearly all memory, NIC and control port; the new kernel has no complaint and answers on the network.

    The old one's disk stands still by then, and somebody there waits for it.
    """
    old, new = run(beside)
    # Its CPUs 0 to 3 are those that were 3, 0, 1 and 2; the last one rested, and is brought online by hand.
    inherited(new, told(old), ("0", "0-2"))
    with pytest.raises(ConnectionRefusedError):  # by the new kernel, where nobody listens
        beside.network.connect(1, 10.0)


@pytest.mark.extended
@pytest.mark.parametrize("beside", [NEWER], ids=["newer"], indirect=True)
def test_the_new_kernel_leaves_in_its_turn(beside: Guest) -> None:
    """The third kernel has all that the first had; one that was fenced before had given everything back."""
    old, new = run(beside, "again")
    first, second = told(old), told(new)
    inherited(new, first, ("0", "0-2"))
    assert second["given back"]["kept"]
    # Its CPUs 0 to 3 were 3, 0, 1 and 2 of the second, where 1 was the bootstrap processor.
    inherited(old.split('"2 buses"')[1], second, ("0", "0-3"))
    with pytest.raises(ConnectionRefusedError):
        beside.network.connect(1, 10.0)

"""A second kernel starts beside the running one, is spoken to, and everything it was given comes back."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from kupgrade.core import spawn_checks, spawn_choice
from kupgrade.model.codec import decode
from kupgrade.model.spawn_facts import ModuleState, SpawnFacts, Stack
from tests.fakes import facts as fake
from tests.vm import spawn_inside
from tests.vm.hosts import NEWER, Guest

pytestmark = [pytest.mark.vm, pytest.mark.parametrize("beside", [NEWER], ids=["newer"], indirect=True)]

TIMES = 3
SECONDS_TO_HELLO = 30.0  # under emulation on a busy machine; 5 to 10 are usual


def inside(host: Guest, verb: str, times: int = 1) -> dict[str, Any]:
    script = ["/usr/bin/python3", host.push(spawn_inside), verb]
    done = host.link.run([*script, host.release, "/opt/own.ko", "/opt/other.ko", str(times)], timeout=400.0)
    print(done.stderr, file=sys.stderr)
    assert done.status == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert "error" not in found, f"{found['error']}\n{host.log('serial2.log')[-3000:]}"
    assert not found["complaints"]
    assert found["before"] == found["after"]
    return found


def check_facts(encoded: dict[str, Any]) -> None:
    """What the probe says of the virtual host is what the lab built, and enough to choose from."""
    seen = decode(SpawnFacts, encoded)
    assert not seen.unknown
    assert seen.module is ModuleState.LOADED and (seen.bsp, seen.ecam, seen.ipi_broadcast) == (0, True, False)
    assert seen.root and seen.root.uuid and seen.root.stack is Stack.PLAIN and not seen.others and not seen.swaps
    (nic,) = seen.nics
    by_place = {port.address: set(port.modules) for port in seen.ports}
    assert "virtio_blk" in by_place[seen.root.ports[0]] and "virtio_net" in by_place[nic.port]
    facts = fake.facts(spawn=seen)
    assert spawn_checks.refusals(facts, fake.policy()) == ()
    choice = spawn_choice.choose(facts, fake.policy())
    assert isinstance(choice, spawn_choice.SpawnChoice)
    assert (choice.cpus, choice.handed) == ((3, 2), (seen.root.ports[0], nic.port))


@pytest.mark.extended
def test_a_kernel_comes_up_beside_this_one_and_leaves_nothing(beside: Guest) -> None:
    """Three times in a row: it says hello, beats, answers, is fenced; all CPUs and all memory are as before."""
    found = inside(beside, "cycles", TIMES)
    check_facts(found["facts"])
    assert found["same"], "two builds of one standby initramfs differ"
    assert len(found["cycles"]) == TIMES
    assert len({cycle["boot_id"] for cycle in found["cycles"]}) == TIMES
    for cycle in found["cycles"]:
        assert cycle["release"] == cycle["status"]["release"] == beside.release
        assert cycle["hello after"] < SECONDS_TO_HELLO
        assert cycle["status"]["online"] == "0-1"
        assert cycle["beats in 0.5 s"] > 10
        assert cycle["still beats"] == 0
        assert cycle["window after wipe"]
        assert cycle["left"] == ["", [], 0]
        assert cycle["resources kept"]
    first = found["cycles"][0]
    assert "nf_tables" in first["modules"]["loaded"]
    assert first["criu"]["criu"] == ""
    assert "KSPAWN_ACPI" in first["bad ssdt"]
    hellos = sorted(cycle["hello after"] for cycle in found["cycles"])
    print(f"hello after {hellos} s, ping {[cycle['ping ms']['median'] for cycle in found['cycles']]} ms")


@pytest.mark.extended
def test_the_end_of_the_new_kernel_is_not_the_end_of_this_one(beside: Guest) -> None:
    """A panic, a reset and a power-off there are told apart within moments; the machine goes on with all it had."""
    boots = len(beside.link.boots)
    found = inside(beside, "deaths")["deaths"]
    assert "panicked" in found["c"][0]
    assert "a reset: the guard stopped" in found["b"][0]
    assert "power off: the guard stopped" in found["o"][0]
    assert len(beside.link.boots) == boots

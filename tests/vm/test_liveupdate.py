"""The live update device does what our wrapper, and the fake of it, take it to do, over two kexecs and two releases."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host import kho_abi
from kupgrade.rehearsal import kho_kernel, qemu, virtual_host
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.virtual_host import VirtualHost
from tests.fakes import liveupdate_cases as cases
from tests.vm.conftest import say

pytestmark = pytest.mark.vm

HERE = Path(__file__).parent
INSIDE = "liveupdate_inside.py"


@pytest.fixture
def handover() -> Iterator[tuple[VirtualHost, Link]]:
    """A virtual host with two kernels that can hand over; skipped where there is none, unless it is required."""
    line = virtual_host.command_line(kho_kernel.COMMAND_LINE)
    try:
        host = virtual_host.build("khokernel-7.2", "khokernel-7.3", say, line=line)
    except KupgradeError as error:
        if "vm" in os.environ.get("KUPGRADE_REQUIRE", ""):
            raise
        pytest.skip(f"no virtual host here: {error}")
    with ExitStack() as stack:
        network = Network.create()
        stack.callback(network.close)
        state = qemu.run_directory()
        running = qemu.start(host.tools, host.machine(), state, network.tap())
        stack.callback(running.stop)
        link = stack.enter_context(closing(Link(state / "agent")))
        link.wait_boot(240.0)
        yield host, link


def stage(link: Link, name: str, release: str = "") -> dict[str, Any]:
    """What one kernel showed; with `release`, from the other side of the kexec."""
    out = f"/opt/{name}.json"
    boots = len(link.boots)
    command = ["python3", "/opt/liveupdate_inside.py", name, out]
    if release:
        words = ["systemd-run", "--quiet", f"--unit=liveupdate-{name}", "--property=StandardError=journal+console"]
        assert link.run([*words, *command, release]).status == 0
        assert link.wait_boot(180.0, boots).release == release
    else:
        done = link.run(command, timeout=120.0)
        assert done.status == 0, done.stderr
    found: dict[str, Any] = json.loads(link.read(out))
    print(json.dumps(found, indent=1), file=sys.stderr)
    assert "error" not in found, found["error"]
    return found


def test_the_kernel_answers_as_the_fake_does(handover: tuple[VirtualHost, Link]) -> None:
    """Every case over three kernels of two releases; the facts about KHO, and the names told from the images."""
    host, link = handover
    old, new = host.old_release, host.new_release
    assert link.run(["mkdir", "-p", "/opt/tests/fakes"]).status == 0
    link.write(f"/opt/{INSIDE}", (HERE / INSIDE).read_bytes())
    for name in cases.FILES:
        link.write(f"/opt/tests/fakes/{name}", (HERE.parent / "fakes" / name).read_bytes())
    found = {"first": stage(link, "first", new), "second": stage(link, "second", old), "third": stage(link, "third")}
    assert [each["release"] for each in found.values()] == [old, new, old]
    for name, table in cases.TABLES.items():
        assert found[name]["seen"] == {each.name: each.expected for each in table}
        facts = found[name]["kho"]
        assert (facts["device_there"], facts["enabled"], facts["liveupdate"]) == (True, True, True)
        assert facts["scratch"]
        abi = kho_abi.read(host.kernel(found[name]["release"]))
        assert abi.known
        assert (facts["kho_abi"], facts["luo_abi"]) == (abi.kho, abi.luo)
    assert found["first"]["kho"]["incoming"] == []
    for name, before, count in (("second", old, 1), ("third", new, 2)):
        facts = found[name]["kho"]
        assert {"LUO", "kexec-metadata"} <= set(facts["incoming"])
        assert (facts["previous_release"], facts["kexec_count"]) == (before, count)
    assert found["second"]["ms"]["equal"]

"""A virtual host that runs, for tests that drive it themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import inside, qemu, virtual_host
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.options import Options


def say(text: str) -> None:
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class Guest:
    """The old kernel runs, with the demonstration workload; `release` is the new kernel's."""

    link: Link
    network: Network
    old_release: str
    release: str


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A fresh virtual host, ended with the test; without one: skipped, or failed where tests in VMs are required."""
    try:
        host = virtual_host.build("trixie", "trixie-backports", say)
    except KupgradeError as error:
        if "vm" in os.environ.get("KUPGRADE_REQUIRE", ""):
            raise
        pytest.skip(f"no virtual host here: {error}")
    with ExitStack() as stack:
        state = qemu.run_directory()
        network = Network.create()
        stack.callback(network.close)
        running = qemu.start(host.tools, host.machine(), state, network.tap())
        stack.callback(running.stop)
        link = stack.enter_context(closing(Link(state / "agent")))
        link.wait_boot(240.0)
        inside.prepare(link, Options(memory=32))
        yield Guest(link, network, host.old_release, host.new_release)

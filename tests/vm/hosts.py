"""Virtual hosts for tests that drive one themselves: built, started, ended with the test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import inside, qemu, spawn_module, virtual_host
from kupgrade.rehearsal.cache import Cache
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.options import Options
from kupgrade.rehearsal.qemu import Qemu
from kupgrade.rehearsal.suites import Archive, mirror
from kupgrade.rehearsal.virtual_host import VirtualHost

NEWER, OLDER = ("trixie", "trixie-backports"), ("trixie-backports", "trixie")  # the old kernel's suite, the new one's
BOOT = 240.0  # seconds


def say(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def skipped_without() -> Iterator[None]:
    """Where no virtual host can be had the test is skipped, or fails when tests in VMs are required."""
    try:
        yield
    except KupgradeError as error:
        if "vm" in os.environ.get("KUPGRADE_REQUIRE", ""):
            raise
        pytest.skip(f"no virtual host here: {error}")


@dataclass(frozen=True)
class Guest:
    """The old kernel runs; `release` is the new kernel's. QEMU's logs are in `state`."""

    link: Link
    network: Network
    running: Qemu
    state: Path
    release: str

    def push(self, script: ModuleType) -> str:
        """Where a script of these tests lies in the virtual host now."""
        source = Path(str(script.__file__))
        self.link.write(f"/opt/{source.name}", source.read_bytes())
        return f"/opt/{source.name}"

    def start_workload(self) -> None:
        """The demonstration workload and its policy."""
        inside.prepare(self.link, Options(memory=32))

    def log(self, name: str) -> str:
        """What a serial port said so far."""
        return (self.state / name).read_text(errors="replace")


@contextmanager
def started(host: VirtualHost, memory_mib: int = 2048, cpus: int = 2) -> Iterator[Guest]:
    """A fresh machine from the image of `host`, booted."""
    with ExitStack() as stack:
        state = qemu.run_directory()
        network = Network.create()
        stack.callback(network.close)
        running = qemu.start(host.tools, host.machine(memory_mib, cpus), state, network.tap())
        stack.callback(running.stop)
        link = stack.enter_context(closing(Link(state / "agent")))
        link.wait_boot(BOOT)
        yield Guest(link, network, running, state, host.new_release)


@contextmanager
def with_module(kernels: tuple[str, str], memory_mib: int) -> Iterator[Guest]:
    """Four CPUs, and kspawn for the old kernel and the new one as /opt/own.ko and /opt/other.ko."""
    with skipped_without():
        host = virtual_host.build(*kernels, say, line=virtual_host.command_line("no_ipi_broadcast=1"))
        archive = Archive(Cache.default(), mirror())
        built = [spawn_module.for_release(archive, each) for each in (host.old_release, host.new_release)]
    with started(host, memory_mib, 4) as guest:
        for name, module in zip(("own", "other"), built, strict=True):
            guest.link.write(f"/opt/{name}.ko", module.read_bytes())
        yield guest

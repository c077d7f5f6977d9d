"""An instance runs beside a host that goes on with its work, is looked at, and gives everything back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from kupgrade.rehearsal import inside, virtual_host
from kupgrade.rehearsal.link import Link
from tests.vm.hosts import NEWER, say, skipped_without, started

pytestmark = pytest.mark.vm

RESOURCES = """
cat /sys/devices/system/cpu/online /proc/iomem
grep MemTotal /proc/meminfo
grep . /sys/devices/system/memory/memory*/state /sys/devices/system/memory/memory*/valid_zones
ls -d /dev/kspawn /var/lib/kupgrade/staged/*/standby 2>&1
"""
IN_IT = "/proc/sys/kernel/osrelease /sys/devices/system/cpu/online /proc/cmdline"
WORK = "systemctl show --property MainPID,NRestarts,ActiveState demo.service; pgrep -fc workload.py"
CUT_SHORT = """
kupgrade instance start rt --kernel {release} --json >/dev/null 2>&1 &
caller=$!
for i in $(seq 1200); do [ "$(cat /sys/devices/system/cpu/online)" = 0-2 ] && break; sleep 0.05; done
systemctl stop kupgrade-instance@rt.service
kill $caller
"""


@dataclass(frozen=True)
class Host:
    """Four CPUs, 4 GiB, the demonstration workload; `release` is that of the instances."""

    link: Link
    release: str

    def call(self, *words: str, expect: int = 0, timeout: float = 200.0) -> list[dict[str, Any]]:
        """The JSON lines of `kupgrade WORDS`."""
        done = self.link.run(["/usr/bin/kupgrade", *words, "--json"], timeout=timeout)
        log = "" if done.status == expect else self.shell("journalctl -qu 'kupgrade-instance@*' -o cat | tail -n 40")
        assert done.status == expect, (words, done.status, done.stdout[-2000:], done.stderr[-2000:], log)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def shell(self, script: str) -> str:
        return inside.shell(self.link, script, 200.0)

    def only(self) -> dict[str, Any]:
        """The one instance that is listed."""
        (found,) = self.call("instance", "list")
        return found

    def log(self) -> str:
        return "\n".join(line["text"] for line in self.call("instance", "console", "rt"))


@pytest.fixture
def host() -> Iterator[Host]:
    with skipped_without():
        line = virtual_host.command_line("no_ipi_broadcast=1")
        built = virtual_host.build(*NEWER, say, line=line, kspawn=True)
    with started(built, 4096, 4) as guest:
        guest.start_workload()
        yield Host(guest.link, guest.release)


def test_an_instance_lives_beside_the_host_and_leaves_nothing(host: Host) -> None:
    """Started, killed keeper and all, looked at, stopped; cut short and taken back; started without an agent, too."""
    before, work = host.shell(RESOURCES + "true"), host.shell(WORK)
    began = time.monotonic()
    lines = host.call("instance", "start", "rt", "--kernel", host.release, "--append", "threadirqs", "--yes")
    took = time.monotonic() - began
    assert (lines[-1]["outcome"], lines[-1]["instance"]) == ("running", "rt")
    found = host.only()
    assert (found["life"], found["cpus"], found["release"]) == ("alive", "3", host.release), found
    assert found["keeper"] and found["age"] < 0.5 and found["since"]
    for words in (("plan",), ("instance", "start", "rt", "--kernel", host.release), ("apply",)):
        (error,) = [line for line in host.call(*words, expect=75) if "what" in line or "error" in line]
        assert "rt" in json.dumps(error)

    host.shell(f"kill -9 {found['keeper']}; sleep 3")
    again = host.only()
    assert again["life"] == "alive" and again["keeper"] not in (None, found["keeper"]), again
    log = host.log()
    assert f"Linux version {host.release}" in log and "threadirqs" in log, log[:2000]
    (ran,) = host.call("instance", "console", "rt", "--run", f"cat {IN_IT}")
    assert ran["said"].startswith(f"{host.release}\n0\n") and "kupgrade.instance=rt" in ran["said"], ran
    host.call("instance", "console", "rt", "--run", "exit 3", expect=1)
    assert host.shell(WORK) == work

    began = time.monotonic()
    assert host.call("instance", "stop", "rt")[-1]["outcome"] == "stopped"
    print(f"start took {took:.1f} s, stop {time.monotonic() - began:.1f} s, log {len(log.splitlines())} lines")
    assert host.call("instance", "list") == []
    assert host.shell(RESOURCES + "true") == before

    host.shell(CUT_SHORT.format(release=host.release))
    assert host.only()["life"] == "half-started"
    host.call("instance", "stop", "rt")
    assert host.shell(RESOURCES + "true") == before

    foreign = ["--initrd", f"/boot/initrd.img-{host.release}", "--append", "rdinit=/none", "--cpus", "2-3"]
    host.call("instance", "start", "rt", "--kernel", f"/boot/vmlinuz-{host.release}", *foreign)
    deadline = time.monotonic() + 60.0
    while (found := host.only())["life"] == "unknown" and time.monotonic() < deadline:
        time.sleep(1.0)
    assert (found["life"], found["cpus"], found["agent"]) == ("panicked", "2-3", False), found
    assert "Kernel panic - not syncing" in host.log()
    print(f"without an agent: {found['why']}")
    host.call("instance", "stop", "rt")
    assert host.shell(RESOURCES + "true") == before
    assert host.shell(WORK) == work

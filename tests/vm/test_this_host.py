"""A host that rehearses itself: what happens to its copy happens to it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from kupgrade.rehearsal import inside, scenario, virtual_host
from kupgrade.rehearsal.options import Options
from tests.vm.hosts import NEWER, Guest, say, skipped_without, started

pytestmark = [pytest.mark.vm, pytest.mark.extended]

WHOLE = 9000.0  # seconds: a machine that is emulated by one that is emulated
KEPT = "/opt/kept"
# QEMU's libraries need the same version of one that criu's, from a newer suite, depend on.
SERVICES = ("qemu-system-x86", "libnl-route-3-200/sid")
# What must be the same afterwards: mounts, loop devices, the workload's process, and no copy left.
TRACES = """
findmnt --noheadings --list --output TARGET | sort
losetup --list
systemctl show -P MainPID demo.service
ls -A /var/lib/kupgrade/rehearsal 2>/dev/null
pgrep -x qemu-system-x86
true
"""
# Killed while it copies: what is at work then, and the loop device, are gone at once; the copy is there until the next.
KILLED = """
kupgrade rehearse --this-host --json > /dev/null 2>&1 & process=$!
for i in $(seq 900); do
    ls /var/lib/kupgrade/rehearsal/run-*/copy.log > /dev/null 2>&1 && break
    sleep 0.2
done
kill -KILL $process
for i in $(seq 100); do pgrep -x tar > /dev/null || break; sleep 0.2; done
sleep 1
echo "at work: $(pgrep -x tar) loop devices: $(losetup --list --noheadings)"
ls /var/lib/kupgrade/rehearsal | wc -l
"""


def rehearse(guest: Guest) -> dict[str, Any]:
    """The guest's forecast of itself."""
    words = f"kupgrade rehearse --this-host --json --timeout 5000 --keep {KEPT}"
    begun = time.monotonic()
    done = guest.link.run(["/bin/sh", "-c", f"exec {words} 2> /run/progress"], timeout=WHOLE)
    say(guest.link.read("/run/progress").decode(errors="replace"))
    console = guest.link.run(["/bin/sh", "-c", f"tail -n 60 {KEPT}/serial.log"], timeout=60.0).stdout
    assert done.status == 0, f"exit status {done.status}: {done.stdout}{done.stderr}\nconsole of the copy:\n{console}"
    say(f"rehearsed in {time.monotonic() - begun:.0f} s")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.timeout(WHOLE + 3000)
def test_what_happens_to_the_copy_happens_to_the_host() -> None:
    """Outcome and kept processes are as foretold, nothing is left of the rehearsal, and both blackouts are printed."""
    with skipped_without():
        host = virtual_host.build(*NEWER, say, services=SERVICES)
    with started(host, 4096, 2) as guest:
        guest.start_workload()
        before = inside.shell(guest.link, TRACES)
        assert inside.shell(guest.link, KILLED, 400.0).strip() == "at work:  loop devices: \n1"
        too_much = guest.link.run(["kupgrade", "rehearse", "--this-host", "--guest-memory", "60000"], timeout=300.0)
        assert (too_much.status, "60000 MiB" in too_much.stderr) == (3, True), too_much
        told = rehearse(guest)
        assert inside.shell(guest.link, TRACES) == before
        print(json.dumps({name: told[name] for name in ("machine", "slower", "differs", "left_out")}, indent=1))
        assert told["workloads"][0]["kept"] is True, told

        answer = inside.apply(guest.link, Options(), guest.release)
        assert answer == inside.Answer(), answer
        scenario.follow(guest.link, 600.0, say)
        journal = scenario.records(inside.journal(guest.link))
        ended = [record["data"]["outcome"] for record in journal if record["kind"] == "finished"]
        assert ended == [told["outcome"]]
        assert guest.link.boots[-1].release == told["running_release"]
        real = next(record["data"]["blackout"]["demo"] for record in journal if "blackout" in record["data"])
    demo = told["workloads"][0]
    print(
        f"blackout of demo: predicted here {demo['predicted_seconds']} s, in the copy {demo['blackout_seconds']} s"
        f" ({demo['scaled_seconds']} s at this host's speed), really {real:.3f} s"
    )

"""What really runs on a host is dumped while it goes on, and restored in a copy of that host on the next kernel."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kupgrade.model.codec import decode, encode
from kupgrade.model.live_images import DumpRequest
from kupgrade.model.workload import Store, StoreKind, Workload
from kupgrade.rehearsal import inside, own_live, virtual_host
from tests.vm.hosts import NEWER, Guest, say, skipped_without, started
from tests.vm.test_this_host import KEPT, SERVICES, WHOLE

pytestmark = [pytest.mark.vm, pytest.mark.extended]

PLACE = "/opt/live"
UNIT = "kupgrade-live-images-test.service"
START = f"systemctl start {UNIT}"
# What a dump must not leave: frozen processes, the lock, a note, links, the service, images, sockets in repair mode.
HELD = """
cd /sys/fs/cgroup/system.slice/demo.service
cat cgroup.freeze
for pid in $(cat cgroup.procs); do grep -H '^State:.[Tt]' /proc/$pid/status; done
nft list tables | grep kupgrade
ls /run/kupgrade/live-images.json /var/lib/demo/link_remap.* /var/lib/kupgrade/*.nft 2> /dev/null
systemctl list-units --all --plain --no-legend 'kupgrade-live-images*'
true
"""
KILLED = """
{run} & run=$!
for i in $(seq 6000); do test -e /run/kupgrade/live-images.json && break; sleep 0.01; done
sleep {delay}
echo "frozen $(cat /sys/fs/cgroup/system.slice/demo.service/cgroup.freeze)"
systemctl kill --signal=KILL --kill-whom=main kupgrade-live-images-test.service
wait $run
systemctl start kupgrade-live-images-test-release.service
ls -l /run/kupgrade
cat /opt/live/live-answer.json
journalctl -u 'kupgrade-live-images-test*' -n 12 -o short-monotonic --no-pager
"""

# Seconds after the first round of copying memory has begun; the dump itself comes after one to three.
DELAYS = ("0", "0.4", "0.8", "1.2", "1.6", "1.8", "2", "2.2", "2.4", "2.7", "3", "3.5")


class Talk:
    """A client outside, with one connection for all of the test."""

    def __init__(self, guest: Guest) -> None:
        self.socket = guest.network.connect(7070, 60.0)
        self.socket.settimeout(120.0)
        self.lines = self.socket.makefile("rb")
        self.number = 0

    def close(self) -> None:
        self.lines.close()
        self.socket.close()

    def ask(self) -> tuple[int, list[str]]:
        """(how many answers that process has given, who it is): a reset, or another process, is seen."""
        self.number += 1
        self.socket.sendall(b"%d\n" % self.number)
        number, count, *who = self.lines.readline().decode().split()
        assert int(number) == self.number
        return int(count), who[:2]


@contextmanager
def served() -> Iterator[tuple[Guest, Talk]]:
    """A host whose workload has one client outside."""
    with skipped_without():
        host = virtual_host.build(*NEWER, say, services=SERVICES)
    with started(host, 4096, 2) as guest:
        guest.start_workload()
        with closing(Talk(guest)) as talk:
            yield guest, talk


def request(guest: Guest) -> bytes:
    """As a rehearsal asks for it."""
    made = json.loads(
        inside.shell(guest.link, f"kupgrade plan --json --kernel {guest.release}", 300.0).splitlines()[-1]
    )
    steps = [step for phase in made["phases"] for step in phase["steps"]]
    workloads = next(step["params"]["workloads"] for step in steps if step["kind"] == "dump")
    wanted = DumpRequest(
        store=Store(StoreKind.DISK, f"{PLACE}/live/images"),
        workloads=decode(tuple[Workload, ...], workloads, "workloads"),
        rounds=3,
        late=f"{PLACE}/live/late",
        since=0.0,
        absent=("/tmp",),
        reserve=1 << 20,
        lock=f"{PLACE}/lock",
        old_release=made["old_release"],
        new_release=made["new_release"],
    )
    return json.dumps(encode(wanted)).encode()


def prepare(guest: Guest, wanted: bytes) -> None:
    """A fresh directory, its lock held by a process that waits for the images."""
    inside.shell(guest.link, f"rm -rf {PLACE}; mkdir -p {PLACE}/live/late; chmod -R 0700 {PLACE}; touch {PLACE}/lock")
    for name, text in own_live.units(Path(PLACE), UNIT).items():
        guest.link.write(f"/run/systemd/system/{name}", text.replace(sys.executable, "/usr/bin/python3").encode())
    guest.link.write(f"{PLACE}/live-request.json", wanted)


def dumped(guest: Guest) -> dict[str, Any]:
    done = guest.link.run(["/bin/sh", "-c", f"exec flock {PLACE}/lock {START}"], timeout=600.0)
    assert done.status == 0, done
    told: dict[str, Any] = json.loads(guest.link.read(f"{PLACE}/live-answer.json"))
    return told


@pytest.mark.timeout(WHOLE)
def test_a_dump_lets_everybody_go_on_however_it_ends() -> None:
    """One connection lives through dumps that end and such whose master is killed at any moment; nothing stays."""
    with served() as (guest, talk):
        count, who = talk.ask()
        clean = inside.shell(guest.link, HELD)
        assert clean == "0\n"
        wanted = request(guest)
        for delay in DELAYS:
            prepare(guest, wanted)
            script = KILLED.format(run=f"flock {PLACE}/lock {START}", delay=delay)
            said = guest.link.run(["/bin/sh", "-c", script], timeout=600.0)
            say(f"killed {delay} s after the note: {said.stdout.strip()} {said.stderr.strip()[-300:]}")
            say(inside.shell(guest.link, "journalctl -u demo.service -n 4 -o short-monotonic --no-pager"))
            begun = time.monotonic()
            assert talk.ask()[1] == who
            say(f"answered after {time.monotonic() - begun:.2f} s")
            assert inside.shell(guest.link, HELD) == clean
        prepare(guest, wanted)
        told = dumped(guest)
        say(json.dumps(told, indent=1)[:3000])
        (demo,) = told["dumped"]
        assert (demo["error"], told["failure"]) == ("", None)
        assert {"/var/lib/demo/lines"} <= {each["path"] for each in demo["late"]}
        assert talk.ask()[1] == who
        assert inside.shell(guest.link, HELD) == clean
        modes = inside.shell(guest.link, f"find {PLACE}/live -type f -perm /077; find {PLACE}/live -type d -perm /077")
        assert modes == ""
        found = guest.link.run(["/bin/sh", "-c", START], timeout=600.0)  # nobody holds the lock
        assert found.status != 0
        assert inside.shell(guest.link, f"ls {PLACE}/live") == ""
        assert talk.ask() == (count + len(DELAYS) + 2, who)


@pytest.mark.timeout(WHOLE + 3000)
def test_what_runs_here_is_restored_in_the_copy() -> None:
    """With its connections, on the target kernel; here its client hears nothing of it, and no image stays."""
    with served() as (guest, talk):
        _, who = talk.ask()
        held = inside.shell(guest.link, HELD)
        words = f"kupgrade rehearse --this-host --live-images --json --timeout 1500 --keep {KEPT}"
        begun = time.monotonic()
        done = guest.link.run(["/bin/sh", "-c", f"exec {words} 2> /run/progress"], timeout=WHOLE)
        say(guest.link.read("/run/progress").decode(errors="replace"))
        console = guest.link.run(["/bin/sh", "-c", f"tail -n 80 {KEPT}/live/serial.log"], timeout=60.0).stdout
        say(f"rehearsed in {time.monotonic() - begun:.0f} s; console of the restore:\n{console}")
        told = json.loads(done.stdout.splitlines()[-1])
        say(json.dumps({name: told.get(name) for name in ("outcome", "findings", "live")}, indent=1))
        assert talk.ask()[1] == who
        assert inside.shell(guest.link, HELD) == held
        assert inside.shell(guest.link, "ls -A /var/lib/kupgrade/rehearsal; pgrep -x qemu-system-x86 || true") == ""
        assert inside.shell(guest.link, f"find {KEPT} -name '*.img*'") == ""
        (live,) = told["live"]
        assert live["restored"] is True
        assert 0 < live["pause_seconds"] < 60
        assert (done.status, told["outcome"]) == (0, "committed"), done.stderr

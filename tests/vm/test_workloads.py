"""Several workloads of every kind at once, and an operator who changes their mind in between."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kupgrade.errors import ExitCode
from kupgrade.rehearsal import inside
from kupgrade.rehearsal.client import Client
from kupgrade.rehearsal.link import Link
from tests.vm.hosts import Guest

pytestmark = pytest.mark.vm

POLICY = """
[[workload]]
name = "second"
unit = "second.service"

[workload.probe]
kind = "http"
port = 7081

[[workload]]
name = "tree"
pidfile = "/run/tree.pid"

[[workload]]
name = "group"
cgroup = "/group.slice"
"""
# A second unit, and two process trees that systemd did not start, each in a cgroup of its own.
SETUP = r"""
sed -e 's#/lines#/second#' -e 's#^ExecStart=.*#& --port 7080 --deleted 3#' /usr/lib/systemd/system/demo.service \
    > /etc/systemd/system/second.service
systemctl daemon-reload
systemctl start second.service
tree() {
    mkdir -p /sys/fs/cgroup/$1
    setsid sh -c "echo \$\$ > /sys/fs/cgroup/$1/cgroup.procs; echo \$\$ > /run/$2.pid; cd /
        exec python3 /usr/lib/kupgrade-lab/workload.py --memory 8 --port $3 --file /var/lib/$2.lines" \
        < /dev/null > /dev/null 2>&1 &
}
tree tree.slice tree 7090
tree group.slice group 7100
for port in 7080 7090 7100; do
    for i in $(seq 300); do ss -ltnH "sport = :$port" | grep -q . && break; sleep 0.1; done
done
"""
PORTS = (7070, 7070, 7080, 7090, 7100)
ENDED = "for i in $(seq 480); do [ -e /var/lib/kupgrade/current ] || exit 0; sleep 0.5; done; exit 1"
PIDS = "cat /sys/fs/cgroup/{system.slice/demo.service,system.slice/second.service,tree.slice,group.slice}/cgroup.procs"


def kupgrade(link: Link, *words: str, timeout: float = 300.0) -> tuple[int, dict[str, Any]]:
    """Exit status and the last JSON object of a verb."""
    done = link.run(["kupgrade", *words, "--json"], timeout=timeout)
    print(done.stdout[-3000:], done.stderr[-1500:])
    return done.status, json.loads(done.stdout.strip().splitlines()[-1])


def pids(link: Link) -> list[str]:
    done = link.run(["/bin/bash", "-c", PIDS])
    assert done.status == 0, done.stderr
    return done.stdout.split()


def test_a_change_of_mind_and_then_the_upgrade_of_four_workloads(guest: Guest) -> None:
    """Rolled back by the operator, then committed: units, a PID file's tree and a cgroup keep PIDs and connections."""
    link = guest.link
    link.write("/etc/kupgrade/policy.d/60-more.toml", POLICY.encode())
    inside.shell(link, SETUP)
    before = pids(link)
    assert len(before) == 8
    clients = [Client(guest.network.connect(port, 30.0)) for port in PORTS]
    release = ("--kernel", guest.release)

    assert kupgrade(link, "apply", "--yes", "--no-wait", *release)[0] == ExitCode.DONE
    status, value = kupgrade(link, "rollback")
    assert (status, value["outcome"]) == (ExitCode.DONE, "rolled-back")
    assert kupgrade(link, "status")[1]["open"] is False
    assert pids(link) == before
    assert inside.leftovers(link) == ()

    # What an operator took back is no bad release: it may be tried again without more words.
    assert kupgrade(link, "apply", "--yes", "--no-wait", *release)[0] == ExitCode.DONE
    inside.shell(link, "setsid kupgrade status --watch > /opt/watched 2>&1 < /dev/null &")
    link.wait_boot(480.0, after=1)
    inside.shell(link, ENDED, 300.0)
    recordings = [client.stop(60.0) for client in clients]

    watched = link.read("/opt/watched").decode()
    assert re.search(r" s  \[6/[0-9]+\] ", watched), watched[-2000:]  # and more, until the crossing ended it
    status, value = kupgrade(link, "status")
    assert (status, value["running_release"], value["last"]["outcome"]) == (0, guest.release, "committed")
    assert pids(link) == before
    assert inside.leftovers(link) == ()
    for port, recording in zip(PORTS, recordings, strict=True):
        told = (port, recording.problems[:3], len(recording.sent), len(recording.answered))
        assert recording.resets == 0, told
        assert recording.in_order, told
        assert len(recording.answered) == len(recording.sent) > 100, told
    with guest.network.connect(
        7080, 180.0
    ) as connection:  # with its deleted file, which is more than criu takes by itself
        connection.sendall(b"check\n")
        assert connection.recv(100) == b"check ok\n"
    active = link.run(["systemctl", "is-active", "demo.service", "second.service"])
    assert active.stdout.split() == ["active", "active"]

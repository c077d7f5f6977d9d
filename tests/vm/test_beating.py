"""A service with a watchdog and cgroups of its own, kept, beside one that is stopped meanwhile."""

from __future__ import annotations

import json

import pytest

from kupgrade.errors import ExitCode
from kupgrade.rehearsal import inside
from kupgrade.rehearsal.link import Link
from tests.vm.hosts import Guest

pytestmark = [pytest.mark.vm, pytest.mark.extended]

POLICY = """
[[workload]]
name = "beating"
unit = "beating.service"

[[workload]]
name = "batch"
unit = "batch.service"
fate = "stop"
stop_timeout = "60s"
"""
# One process beats, in one cgroup below the unit's; the other is in another.
BEATING = rb"""
import os, pathlib, socket, time

own = pathlib.Path("/sys/fs/cgroup") / pathlib.Path("/proc/self/cgroup").read_text().strip()[4:]
for name in ("main", "worker"):
    (own / name).mkdir()
child = os.fork()
(own / ("main" if child else "worker") / "cgroup.procs").write_text(str(os.getpid()))
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if child:
    manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    if child:
        manager.sendto(b"WATCHDOG=1", os.environ["NOTIFY_SOCKET"])
    time.sleep(0.5)
"""
WATCHDOG = 6  # seconds; an upgrade takes them longer than that
UNITS = {
    "beating": f"""[Service]
Type=notify
NotifyAccess=main
Delegate=yes
WatchdogSec={WATCHDOG}
ExecStart=/usr/bin/python3 /opt/beating.py
""",
    "batch": """[Service]
ExecStartPre=/bin/sh -c 'echo start >> /var/lib/batch.log'
ExecStart=/bin/sleep infinity
ExecStopPost=/bin/sh -c 'echo stop >> /var/lib/batch.log'
[Install]
WantedBy=multi-user.target
""",
}
NO = b"#!/bin/sh\necho not this one\nexit 1\n"
ENDED = "for i in $(seq 480); do [ -e /var/lib/kupgrade/current ] || exit 0; sleep 0.5; done; exit 1"
LOOK = r"""
systemctl show -P MainPID -P NRestarts -P ActiveState -P WatchdogUSec -P SubState beating.service
for pid in $(cat /sys/fs/cgroup/system.slice/beating.service/*/cgroup.procs); do echo $pid; cat /proc/$pid/cgroup; done
"""
EVIDENCE = (
    "kupgrade status; journalctl --no-pager -o short-monotonic -b -u 'kupgrade*' -u beating -u batch | tail -n 60"
)


def told(link: Link) -> tuple[str, str, list[str]]:
    """Of the kept service; whether the other runs; how often that was started and stopped."""
    log = inside.shell(link, "cat /var/lib/batch.log").split()
    active = link.run(["systemctl", "is-active", "batch.service"]).stdout.strip()
    return inside.shell(link, LOOK), active, log


def upgrade(guest: Guest, *words: str) -> str:
    """Outcome, when it is over."""
    link = guest.link
    done = link.run(["kupgrade", "apply", "--yes", "--no-wait", "--kernel", guest.release, *words], timeout=300.0)
    assert done.status == ExitCode.DONE, done.stdout + done.stderr
    link.wait_boot(480.0, after=len(link.boots))
    inside.shell(link, ENDED, 300.0)
    print(link.run(["/bin/sh", "-c", EVIDENCE], timeout=120.0).stdout)
    return str(json.loads(link.run(["kupgrade", "status", "--json"]).stdout.splitlines()[-1])["last"]["outcome"])


def test_a_watchdog_waits_and_a_stopped_unit_is_quiet(guest: Guest) -> None:
    """There and back, then there: same processes in their cgroups, none of them killed; the other is started again."""
    link = guest.link
    link.write("/opt/beating.py", BEATING)
    for name, text in UNITS.items():
        link.write(f"/etc/systemd/system/{name}.service", text.encode())
    link.write("/etc/kupgrade/policy.d/60-more.toml", POLICY.encode())
    inside.shell(link, "systemctl daemon-reload; systemctl enable --quiet batch; systemctl start beating batch")
    before = told(link)
    print(before)
    assert before[1:] == ("active", ["start"])

    link.write("/etc/kupgrade/hooks/pre-resume.d/10-no", NO, 0o755)
    assert upgrade(guest) == "rolled-back"
    assert told(link) == (before[0], "active", ["start", "stop", "start"])

    inside.shell(link, "rm /etc/kupgrade/hooks/pre-resume.d/10-no")
    assert upgrade(guest, "--retry-failed") == "committed"
    assert told(link) == (before[0], "active", ["start", "stop", "start", "stop", "start"])
    assert link.boots[-1].release == guest.release
    assert inside.leftovers(link) == ()

    # And it counts again.
    inside.shell(link, "kill -STOP $(systemctl show -P MainPID beating.service)")
    waited = f"for i in $(seq 60); do systemctl --quiet is-failed beating && exit 0; sleep {WATCHDOG / 6}; done; exit 1"
    inside.shell(link, waited, 200.0)
    assert link.run(["systemctl", "show", "-P", "Result", "beating.service"]).stdout.strip() == "watchdog"

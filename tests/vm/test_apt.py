"""apt brings a newer kernel; what becomes of it is the policy's word."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from kupgrade.errors import ExitCode
from kupgrade.rehearsal import inside
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.options import Options
from tests.vm.fresh import KERNEL, fresh
from tests.vm.hosts import Guest, say
from tests.vm.speakers import Postgres, Redis, Speaker, Web
from tests.vm.test_services import ENDED, POLICY, SERVICES, SETUP, check_records, evidence
from tests.vm.test_services import look as look_at_servers

pytestmark = [pytest.mark.vm, pytest.mark.extended]

INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends"
# As an operator pins the kernel that is known to be good.
DEFAULT = r"""update-grub 2>&1
id=$(grep -o "gnulinux-$(uname -r)-advanced-[^']*" /boot/grub/grub.cfg | head -n 1)
menu=$(grep -o "gnulinux-advanced-[^']*" /boot/grub/grub.cfg | head -n 1)
grub-set-default "$menu>$id"
"""
HOOK = "/usr/share/kernel/postinst.d/zz-kupgrade"
PENDING = "/var/lib/kupgrade/pending"
REQUIRED = "/run/reboot-required"
NO = b"#!/bin/sh\necho the operator is asleep\nexit 1\n"
# Of a run of nothing (fork, exec and wait), the seconds that the hook takes more than that.
TIMED = f"""
set -e
timed() {{ s=$(date +%s%N); for i in 1 2 3 4 5 6 7 8 9 10; do "$@"; done; echo $(( ($(date +%s%N) - s) / 10 )); }}
timed sh -c :; timed {HOOK} "$1" /boot/vmlinuz
"""


@contextmanager
def installed(services: Sequence[str] = ()) -> Iterator[Guest]:
    """kupgrade was installed by apt; the newer kernel is in apt's archive."""
    with fresh(services) as guest:
        inside.shell(guest.link, f"{DEFAULT}apt-get -qq update", 300.0)
        say(inside.shell(guest.link, f"{INSTALL} kupgrade", 600.0)[-600:])
        yield guest


@pytest.fixture
def host() -> Iterator[Guest]:
    """The demonstration workload is to be kept."""
    with installed() as guest:
        inside.prepare(guest.link, Options())
        yield guest


@pytest.fixture
def servers() -> Iterator[Guest]:
    """Debian's redis-server, postgresql and nginx are to be kept."""
    with installed(SERVICES) as guest:
        guest.link.write("/etc/kupgrade/policy.d/50-servers.toml", POLICY.encode())
        inside.shell(guest.link, SETUP, 300.0)
        yield guest


def install_kernel(link: Link, release: str) -> None:
    begun = time.monotonic()
    said = inside.shell(link, f"{INSTALL} {KERNEL}", 900.0)
    nothing, hook = (int(line) / 1e9 for line in inside.shell(link, f"set {release}\n{TIMED}").split()[-2:])
    say(f"{said[-800:]}\napt: {time.monotonic() - begun:.1f} s, of it the hook {hook - nothing:.3f} s")
    assert hook - nothing < 1.0  # by a processor that is emulated


def automate(link: Link, policy: str) -> None:
    link.write("/etc/kupgrade/policy.d/60-automation.toml", policy.encode())


def look(link: Link, policy: str) -> dict[str, Any]:
    """What one look at the requests comes to under `policy`; the transaction is long over."""
    automate(link, policy)
    inside.shell(link, f"touch -d '-1 hour' {PENDING}/*.json")
    done = link.run(["kupgrade", "auto", "--json"], timeout=300.0)
    say(done.stdout[-1000:] + done.stderr[-1000:])
    attempt: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["attempt"]
    assert attempt["code"] == done.status
    told = json.loads(link.run(["kupgrade", "status", "--json"]).stdout.splitlines()[-1])
    assert told["automation"]["attempts"][-1]["why"] == attempt["why"]
    return attempt


def closed(link: Link) -> str:
    """A window that opens in three days."""
    day = inside.shell(link, "LC_ALL=C date -u -d '+3 days' +%a").strip().lower()
    return f'[automation]\nmode = "apply"\n[[window]]\ndays = ["{day}"]\nstart = "03:00"\nlength = "15min"\n'


def test_each_policy_does_what_it_says(host: Guest) -> None:
    """Only planned, window closed, over budget, a hook that says no, blocked: told by exit code and status."""
    link, release = host.link, host.release
    before = inside.shell(link, "systemctl show -P MainPID demo.service")
    install_kernel(link, release)
    inside.shell(link, "systemctl stop kupgrade-request.path kupgrade-request.timer kupgrade-request.service")
    noted = json.loads(link.run(["kupgrade", "status", "--json"]).stdout.splitlines()[-1])["automation"]
    assert [each["release"] for each in noted["pending"]["requests"]] == [release]

    planned = look(link, '[automation]\nmode = "plan"\n')
    assert (planned["verdict"], planned["code"]) == ("planned", ExitCode.DONE)
    shown = link.run(["kupgrade", "apply", planned["plan"], "-n"], timeout=120.0)
    assert shown.status == ExitCode.DONE, shown.stderr

    waits = look(link, closed(link))
    assert (waits["verdict"], waits["code"], waits["next"] is not None) == ("waits", ExitCode.NOT_NOW, True)

    over = look(link, 'max_blackout = "1s"\n[automation]\nmode = "apply"\n')
    assert (over["verdict"], over["code"]) == ("refused", ExitCode.OVER_BUDGET)
    assert link.run(["kupgrade", "plan", "--kernel", release], timeout=120.0).status == ExitCode.OVER_BUDGET

    link.write("/etc/kupgrade/hooks/gate.d/10-asleep", NO, 0o755)
    started = look(link, '[automation]\nmode = "apply"\n')
    assert started["verdict"] == "started"
    inside.shell(link, ENDED, 320.0)
    last = json.loads(link.run(["kupgrade", "status", "--json"]).stdout.splitlines()[-1])["last"]
    assert last["outcome"] in ("rolled-back", "failed") and "asleep" in last["reason"], last
    again = look(link, '[automation]\nmode = "apply"\n')
    assert (again["verdict"], again["code"]) == ("waits", ExitCode.NOT_NOW)

    blocked = look(link, f'[automation]\nmode = "apply"\n[kernels]\nblock = ["{release}"]\n')
    assert blocked["verdict"] in ("nothing", "refused") and release in json.dumps(blocked), blocked
    assert inside.shell(link, "systemctl show -P MainPID demo.service") == before
    assert len(link.boots) == 1


def test_an_installed_kernel_comes_to_run_with_no_further_command(servers: Guest) -> None:
    """apt install of the kernel package is all: servers go on under it, no write is lost, no restart is asked for."""
    link, release = servers.link, servers.release
    automate(link, '[automation]\nmode = "apply"\n')
    speakers: list[Speaker] = [
        *(Redis(servers.network.connect(6379, 30.0), f"redis{n}") for n in range(2)),
        *(Postgres(servers.network.connect(5432, 30.0), f"postgres{n}") for n in range(2)),
        *(Web(servers.network.connect(80, 30.0), f"web{n}", interval=2.0) for n in range(2)),
    ]
    for speaker in speakers:
        speaker.start()
    before = look_at_servers(link)
    install_kernel(link, release)
    inside.shell(link, f"touch {REQUIRED}; echo linux-image-{release} > {REQUIRED}.pkgs")
    link.wait_boot(1500.0, after=1)
    assert link.boots[-1].release == release
    with evidence(link):
        inside.shell(link, ENDED, 700.0)
    for speaker in speakers:
        speaker.stop()
        told = (speaker.name, speaker.acknowledged, round(speaker.longest_gap, 1), speaker.problems)
        say(str(told))
        assert (speaker.resets, speaker.problems) == (0, []), told
    check_records(servers, speakers)
    assert look_at_servers(link) == before
    found = json.loads(link.run(["kupgrade", "status", "--json"]).stdout.splitlines()[-1])
    assert (found["running_release"], found["last"]["outcome"]) == (release, "committed")
    assert link.run(["test", "-e", REQUIRED]).status != 0
    # The agent has the request looked at when all is over: it is met, long before a timer would see that.
    inside.shell(link, f'for i in $(seq 240); do [ -z "$(ls {PENDING})" ] && exit 0; sleep 0.5; done; exit 1', 150.0)
    assert inside.leftovers(link) == ()

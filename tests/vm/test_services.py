"""Debian's own redis-server, postgresql and nginx, as their packages bring them, under load through an upgrade."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from kupgrade.errors import ExitCode
from kupgrade.rehearsal import inside, virtual_host
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.options import Options, cpus, kernel_line, machine_memory
from tests.vm.hosts import NEWER, Guest, say, skipped_without, started
from tests.vm.speakers import Download, Postgres, Redis, Speaker, Web

pytestmark = [pytest.mark.vm, pytest.mark.extended]

SERVICES = ("redis-server", "postgresql", "nginx")
UNITS = ("redis-server.service", "postgresql@17-main.service", "nginx.service")
NAMES = ("redis", "postgresql", "nginx")
POLICY = """
deadline = "300s"
keep_services = ["systemd-*", "dbus*", "kupgrade-*"]
""" + "".join(f'\n[[workload]]\nname = "{name}"\nunit = "{unit}"\n' for name, unit in zip(NAMES, UNITS, strict=True))
KEXEC = """
[engine]
order = ["kexec"]

[engine.kexec]
stores = ["pmem", "disk"]
"""
# Seconds that everybody hears nothing, at least: the upgrade happened to all of them.
UNHEARD = {"kexec": 2.0, "spawn": 0.5}
# What an administrator changes of the three: where they listen, and who may come in. Their units stay as they are.
SETUP = r"""
set -e
sed -i -e 's/^bind .*/bind 0.0.0.0/' -e 's/^protected-mode .*/protected-mode no/' /etc/redis/redis.conf
echo "host load load 192.0.2.0/24 trust" >> /etc/postgresql/17/main/pg_hba.conf
echo "listen_addresses = '*'" >> /etc/postgresql/17/main/postgresql.conf
printf 'ok\n' > /var/www/html/small
head -c 25165824 /dev/urandom > /var/www/html/large
systemctl restart redis-server.service postgresql@17-main.service nginx.service
for port in 6379 5432 80; do
    for i in $(seq 600); do ss -ltnH "sport = :$port" | grep -q . && break; sleep 0.2; done
done
su postgres -c "psql -q -c 'CREATE ROLE load LOGIN' -c 'CREATE DATABASE load OWNER load'"
su postgres -c "psql -q -d load -c 'CREATE TABLE acks (who text, number integer)' -c 'ALTER TABLE acks OWNER TO load'"
sha256sum /var/www/html/large
"""
ENDED = """for i in $(seq 360); do
    [ -e /var/lib/kupgrade/current ] || exit 0
    systemctl --quiet is-failed kupgrade-resume.service && exit 2
    sleep 0.5
done; exit 1"""
# Of each unit: state, main process, whether that is in its cgroup, and what of its sandbox can be seen from inside.
LOOK = r"""
for unit in redis-server.service postgresql@17-main.service nginx.service; do
    main=$(systemctl show -P MainPID $unit)
    group=$(systemctl show -P ControlGroup $unit)
    echo "$unit $(systemctl is-active $unit) $(systemctl show -P NRestarts $unit) main $main" \
        "in $(grep -cx $main /sys/fs/cgroup$group/cgroup.procs)"
done
main=$(systemctl show -P MainPID redis-server.service)
inside() { nsenter -t $main -m /proc/self/fd/3 "$@" 3< /usr/bin/stat; }
mounts() { awk -v at="$1" '$5 == at { flags = $6; from = $4 } END { print flags, from }' /proc/$main/mountinfo; }
echo "root $(mounts / | tr , '\n' | grep -cx -e ro -e 'ro .*')"
echo "data $(mounts /var/lib/redis | grep -c '^rw')"
echo "tmp $(mounts /tmp | grep -c systemd-private)"
echo "noexec $(mounts / | grep -c noexec)"
echo "devices $(nsenter -t $main -m /proc/self/fd/3 /dev/pmem0 3< /usr/bin/stat 2>/dev/null | wc -l)"
echo "seccomp $(grep -h -e ^Seccomp: -e ^NoNewPrivs: -e ^CapBnd: /proc/$main/status | tr -s '\t\n' '  ')"
echo "uts $([ "$(readlink /proc/$main/ns/uts)" = "$(readlink /proc/1/ns/uts)" ] && echo shared || echo own)"
echo "pidfiles $(cat /run/redis/redis-server.pid /run/nginx.pid /run/postgresql/17-main.pid | tr '\n' ' ')"
"""
EVIDENCE = """
kupgrade status
systemctl list-jobs
for process in $(pgrep -f kupgrade) $(pgrep criu); do
    echo "$process $(tr '\\0' ' ' < /proc/$process/cmdline) $(cat /proc/$process/wchan)"
    cat /proc/$process/stack
done
tail -n 25 /run/kupgrade/logs/*/restore.log /var/lib/kupgrade/images/*/*/final/dump.log
journalctl --no-pager -o short-monotonic -b -1 -u 'kupgrade*' | tail -n 60
journalctl --no-pager -o short-monotonic -b -u 'kupgrade*' -u redis-server -u nginx -u 'postgresql@*' | tail -n 90
ls -la /run/redis /run/postgresql /dev/shm /run/*.pid
"""
PIDS = "cat /sys/fs/cgroup/system.slice/{redis-server.service,nginx.service}/cgroup.procs | sort -n"


@contextmanager
def services(engine: str, new: Sequence[str] = NEWER[1:]) -> Iterator[tuple[Guest, tuple[str, ...]]]:
    """A virtual host with the three packages and a policy that keeps them, and the releases of the new kernels."""
    options = Options(engine=engine, memory=128)
    with skipped_without():
        line = kernel_line(options)
        host = virtual_host.build(NEWER[0], new, say, services=SERVICES, line=line, kspawn=options.beside)
    with started(host, machine_memory(options), cpus(options)) as found:
        policy = POLICY + (inside.POLICY_SPAWN if options.beside else KEXEC)
        found.link.write("/etc/kupgrade/policy.d/60-services.toml", policy.encode())
        yield found, host.new_releases


@contextmanager
def evidence(link: Link) -> Iterator[None]:
    """What an upgrade that failed has to tell is lost with the virtual host: printed before."""
    try:
        yield
    except BaseException:
        print(link.run(["/bin/bash", "-c", EVIDENCE], timeout=120.0).stdout)
        raise


def begin(link: Link, release: str) -> None:
    done = link.run(["kupgrade", "apply", "--yes", "--no-wait", "--kernel", release], timeout=300.0)
    assert done.status == ExitCode.DONE, done.stdout + done.stderr


def end(link: Link, boots: int) -> None:
    link.wait_boot(600.0, after=boots)
    with evidence(link):
        inside.shell(link, ENDED, 240.0)


def look(link: Link) -> str:
    return inside.shell(link, f"{LOOK}true")


@pytest.mark.parametrize(("engine", "new"), [("kexec", NEWER[1:]), ("spawn", ("7.2", "7.3"))])
def test_three_services_are_kept_with_their_sandboxes_under_load(engine: str, new: tuple[str, ...]) -> None:
    """Same processes, same sandboxes, no reset, and everything that was acknowledged is there, the second time, too.

    What was made beside an old kernel by kupgrade is itself made again.
    """
    with services(engine, new) as (guest, releases):
        kept(guest, engine, releases)


def kept(services: Guest, engine: str, releases: Sequence[str]) -> None:
    link = services.link
    digest = inside.shell(link, SETUP, 300.0).split()[0]
    before, pids = look(link), link.run(["/bin/bash", "-c", PIDS]).stdout
    print(before)
    speakers: list[Speaker] = [
        *(Redis(services.network.connect(6379, 30.0), f"redis{n}") for n in range(2)),
        *(Postgres(services.network.connect(5432, 30.0), f"postgres{n}") for n in range(2)),
        # nginx ends a connection after 1000 requests (keepalive_requests).
        *(Web(services.network.connect(80, 30.0), f"web{n}", interval=0.4) for n in range(2)),
    ]
    download = Download(services.network.connect(80, 30.0), rate=1 << 16)
    for speaker in (*speakers, download):
        speaker.start()

    begin(link, releases[0])
    # It comes after the plan was made: a backend more, which is no reason to plan again.
    late = Postgres(services.network.connect(5432, 30.0), "late")
    late.start()
    end(link, 1)
    for hop, release in enumerate(releases[1:], 2):
        gaps = [round(speaker.longest_gap, 2) for speaker in speakers]
        print(f"longest gaps before upgrade {hop}: {gaps}")
        assert look(link) == before
        begin(link, release)
        end(link, hop)
    time.sleep(3.0)
    download.hurry.set()
    for speaker in (*speakers, late, download):
        speaker.stop()

    status = json.loads(link.run(["kupgrade", "status", "--json"]).stdout.strip().splitlines()[-1])
    assert (status["running_release"], status["last"]["outcome"]) == (releases[-1], "committed"), status
    for speaker in (*speakers, late, download):
        told = (speaker.name, speaker.acknowledged, speaker.longest_gap, speaker.problems)
        print(told)
        assert speaker.resets == 0, told
        assert not speaker.problems, told
    assert all(speaker.acknowledged > 50 for speaker in speakers)
    assert all(speaker.longest_gap > UNHEARD[engine] for speaker in speakers), (
        "the upgrade was not seen by those it happened to"
    )
    assert look(link) == before
    assert link.run(["/bin/bash", "-c", PIDS]).stdout == pids
    assert inside.leftovers(link) == ()
    check_records(services, (*speakers, late))
    assert download.digest == digest


@pytest.mark.parametrize("engine", ["kexec", "spawn"])
def test_three_services_come_back_to_the_old_kernel_with_their_sandboxes(engine: str) -> None:
    """The operator says no when all are restored under the new kernel: nothing is lost on the way back."""
    with services(engine) as (guest, _):
        brought_back(guest, engine)


def brought_back(services: Guest, engine: str) -> None:
    link = services.link
    link.write("/etc/kupgrade/hooks/pre-resume.d/10-no", b"#!/bin/sh\necho not this one\nexit 1\n", 0o755)
    inside.shell(link, SETUP, 300.0)
    before, release = look(link), link.boots[-1].release
    speakers: list[Speaker] = [
        Redis(services.network.connect(6379, 30.0), "redis0"),
        Postgres(services.network.connect(5432, 30.0), "postgres0"),
        Web(services.network.connect(80, 30.0), "web0", interval=0.5),
    ]
    for speaker in speakers:
        speaker.start()
    begin(link, services.release)
    if engine == "kexec":
        # The new kernel goes back in the dark, before it has anything that could say hello.
        link.wait_boot(900.0, after=1)
    with evidence(link):
        inside.shell(link, ENDED, 240.0)
        status = json.loads(link.run(["kupgrade", "status", "--json"]).stdout.strip().splitlines()[-1])
        assert (status["running_release"], status["last"]["outcome"]) == (release, "rolled-back"), status
        assert "not this one" in status["last"]["reason"]
    for speaker in speakers:
        speaker.stop()
        told = (speaker.name, speaker.acknowledged, round(speaker.longest_gap, 1), speaker.problems)
        print(told)
        assert (speaker.resets, speaker.problems) == (0, []), told
    assert look(link) == before
    assert inside.leftovers(link) == ()
    check_records(services, speakers)


def check_records(guest: Guest, speakers: Sequence[Speaker]) -> None:
    """Over new connections, everything that was acknowledged."""
    redis = Redis(guest.network.connect(6379, 30.0), "reader")
    postgres = Postgres(guest.network.connect(5432, 30.0), "reader")
    postgres.greet()
    for speaker in speakers:
        count = speaker.acknowledged
        match speaker:
            case Redis():
                lost = [
                    n for n in range(1, count + 1) if redis.command("GET", f"{speaker.name}:{n}") != b"value %d" % n
                ]
                assert not lost, (speaker.name, lost[:9])
                assert redis.command("GET", speaker.name) == b"%d" % count
            case Postgres():
                where = f"who = '{speaker.name}' AND number BETWEEN 1 AND {count}"
                (found,) = postgres.query(f"SELECT count(DISTINCT number) FROM acks WHERE {where}")
                assert int(found) == count, (speaker.name, found)
    web = Web(guest.network.connect(80, 30.0), "reader")
    assert web.exactly(web.get("/small")) == web.content
    for each in (redis, postgres, web):
        each.close()

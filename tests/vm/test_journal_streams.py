"""Streams of processes that ran before the journal did become the journal's own, and stay it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kupgrade.rehearsal import virtual_host
from kupgrade.rehearsal.inside import shell
from kupgrade.rehearsal.link import Link
from tests.vm import journal_inside
from tests.vm.hosts import NEWER, Guest, say, skipped_without, started

pytestmark = pytest.mark.vm

# PID 1 of the second boot (in the first the file is missing, and the initrd takes the ordinary one).
EARLY_INIT = """#!/bin/sh
mount -t cgroup2 cgroup2 /sys/fs/cgroup
test -d /run/systemd/system && echo there > /run/was-there
setsid /usr/bin/python3 /opt/journal_inside.py boot early > /run/boot.json 2> /run/boot.err < /dev/null &
for i in $(seq 600); do [ -e /run/offered ] && break; sleep 0.1; done
ls -R /run/systemd > /run/before-systemd
exec /sbin/init
"""
RESTART = "systemctl restart systemd-journald.service && sleep 1"


@pytest.fixture
def booting() -> Iterator[Guest]:
    """It can be reset, and then starts with another PID 1."""
    with skipped_without():
        line = virtual_host.command_line("init=/opt/early-init")
        host = virtual_host.build(*NEWER, say, boot="direct", line=line)
    with started(host) as guest:
        guest.push(journal_inside)
        yield guest


def inside(link: Link, verb: str, name: str) -> dict[str, Any]:
    done = link.run(["/usr/bin/python3", "/opt/journal_inside.py", verb, name], timeout=120.0)
    say(f"{verb} {name}: {done.stdout} {done.stderr}")
    assert done.status == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def judge(found: dict[str, Any], name: str) -> None:
    """Every line once, in order, as the unit's; nothing of ours in journald's unit; the stream's end is noticed."""
    assert found["complete"], found.get("said")
    assert found["count"] > journal_inside.BURST
    assert found["_SYSTEMD_UNIT"] == [journal_inside.unit(name)]
    assert found["_PID"] == [found["pid"]]
    assert found["SYSLOG_IDENTIFIER"] == [f"id {name}"]
    assert found["PRIORITY"] == ["6"]
    assert len(found["_STREAM_ID"]) == 1
    assert "NotifyAccess=main" in found["journald"]
    assert "NeedDaemonReload=no" in found["journald"]
    assert not any("kupgrade" in line for line in found["journald"])
    assert found["states gone"] == 1


@pytest.mark.extended
def test_a_stream_joins_at_a_restart_of_the_journal(booting: Guest) -> None:
    """By the drop-in and, without one, in journald's own name: no line is lost or doubled, over later restarts too."""
    say(shell(booting.link, "systemctl show systemd-journald | grep -E '(InactiveExit|ExecMainStart).*Monotonic'"))
    for verb in ("restart", "insist"):
        told = inside(booting.link, verb, verb)
        assert told.get("settled", True), told
        shell(booting.link, RESTART)
        judge(inside(booting.link, "check", verb), verb)


@pytest.mark.extended
def test_a_stream_joins_at_the_first_start_of_the_journal(booting: Guest) -> None:
    """What a process wrote before PID 1 was systemd, while it came up and afterwards is all in the journal, once."""
    link = booting.link
    link.write("/opt/early-init", EARLY_INIT.encode(), 0o755)
    shell(link, "sync")
    booting.running.reset()
    link.wait_boot(240.0, after=1)
    shell(link, "for i in $(seq 100); do [ -s /run/boot.json ] && exit; sleep 0.2; done; cat /run/boot.err; exit 1")
    told = json.loads(link.read("/run/boot.json"))
    say(f"boot: {told}")
    assert told["pid 1"] == "early-init"
    assert told["stored"]
    assert told["settled"]
    assert told["left"] == []
    shell(link, f"{RESTART}; {RESTART}")
    judge(inside(link, "check", "early"), "early")
    short = inside(link, "check", "short")  # its unit is known from the state file alone
    assert (short["complete"], short["count"]) == (True, 20)
    assert short["_SYSTEMD_UNIT"] == [journal_inside.unit("short")]
    failed = shell(link, "systemctl --failed --plain --no-legend; cat /run/was-there /run/before-systemd || true")
    say(failed)
    assert ".service" not in failed.split("/run/systemd:")[0]

"""The fake machine of the crash tests answers as a real host does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kupgrade.rehearsal import inside
from kupgrade.rehearsal.link import Link
from tests.fakes import conversation
from tests.fakes.drive import WORKLOADS, plan
from tests.fakes.endings import Crossed
from tests.fakes.machine import Machine
from tests.vm.hosts import Guest

pytestmark = pytest.mark.vm

SCRIPT = "/opt/conversation.py"
PLAN = "/opt/plan.json"


def fake_answers() -> dict[str, Any]:
    """Both halves of the conversation with the fake, each answer by its question; `violations` aside."""
    machine = Machine(plan(), WORKLOADS[:1], (conversation.BYSTANDER,))
    first = conversation.Conversation(machine.host, plan())
    first.workloads = WORKLOADS[:1]
    before = first.before()
    with pytest.raises(Crossed):
        machine.host.crossing.cross()
    machine.kexec()
    second = conversation.Conversation(machine.host, plan())
    second.workloads = WORKLOADS[:1]
    return {"before": before, "after": second.after()}


def part(link: Link, name: str) -> list[list[Any]]:
    done = link.run(["/usr/bin/python3", SCRIPT, name, PLAN], timeout=400.0)
    assert done.status == 0, done.stderr
    answers: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_the_fake_machine_answers_as_a_real_one(guest: Guest) -> None:
    """Every port, asked the same in the same order over a real crossing, gives the same answers."""
    link, release = guest.link, guest.release
    assert guest.push(conversation) == SCRIPT
    inside.shell(link, f"umask 077; kupgrade plan --kernel {release} --store pmem --out {PLAN}")
    real = {"before": part(link, "before")}
    boots = len(link.boots)
    inside.shell(link, f"systemd-run --no-block /usr/bin/python3 {SCRIPT} jump {PLAN}")
    link.wait_boot(240.0, after=boots)
    inside.shell(link, "systemctl is-system-running --wait || true", 240.0)
    real["after"] = part(link, "after")
    fake = fake_answers()
    differing = [
        f"{half}, {question}: the fake says {expected!r}, the host {found!r}"
        for half in ("before", "after")
        for (question, expected), (_, found) in zip(fake[half], real[half], strict=True)
        if expected != found
    ]
    assert not differing, "\n".join(differing)

"""The journaled steps that prepare a kernel beside this one, on a real machine, killed in between."""

from __future__ import annotations

import json

import pytest

from kupgrade.rehearsal import inside
from tests.vm import beside_inside
from tests.vm.hosts import NEWER, Guest

pytestmark = pytest.mark.vm

INSTALL = """
set -e
for pair in own:$(uname -r) other:{release}; do
    folder=/usr/lib/modules/${{pair#*:}}/extra
    mkdir -p $folder && cp /opt/${{pair%%:*}}.ko $folder/kspawn.ko && depmod ${{pair#*:}}
done
umask 077
kupgrade plan --kernel {release} --store disk --out /opt/plan.json
"""
KILLS = ("", "take-memory:effect", "spawn-kernel:effect")
KILLS_BACK = ("spawn-kernel:undo-intent",)


@pytest.mark.extended
@pytest.mark.parametrize("beside", [NEWER], ids=["newer"], indirect=True)
def test_the_steps_give_everything_back_wherever_they_are_killed(beside: Guest) -> None:
    """Killed before and after effects and on the way back, gone on from the journal: all CPUs and memory come back."""
    link = beside.link
    script = beside.push(beside_inside)
    link.write("/etc/kupgrade/policy.d/50-rehearsal.toml", inside.POLICY.encode())
    inside.shell(link, "systemctl start demo.service", 120.0)
    inside.shell(link, INSTALL.format(release=beside.release), 200.0)
    for number, kill in enumerate((*KILLS, *KILLS_BACK)):
        words = ["/usr/bin/python3", script, "/opt/plan.json", f"/opt/journal-{number}"]
        done = link.run([*words, kill], timeout=240.0)
        if kill:
            assert done.status == -9, (kill, done.stdout, done.stderr[-3000:])
            done = link.run([*words, ""], timeout=240.0)
        assert done.status == 0, (kill, done.stderr[-3000:])
        found = json.loads(done.stdout.splitlines()[-1])
        failed = [line for line in done.stderr.splitlines() if " failed " in line]
        print(kill, found["figures"])
        assert not failed, (kill, failed)
        assert found["outcome"] == "rolled-back", kill
        assert found["before"] == found["after"], kill
        assert "spawn-kernel" in found["figures"], kill

"""The kernel does with our tables what the new kernel's root file system needs, without a tool and without udev."""

from __future__ import annotations

import json
import sys

import pytest

from tests.vm import redo_inside, snapshot_inside
from tests.vm.hosts import Guest

pytestmark = pytest.mark.vm


@pytest.mark.extended
def test_a_file_system_is_written_merged_and_mapped_plainly_in_use(guest: Guest) -> None:
    """Origin untouched before, nothing lost after; refused tables and wrong nodes do no harm; faster than by tools."""
    done = guest.link.run(["/usr/bin/python3", guest.push(snapshot_inside)], timeout=300.0)
    print(done.stderr, file=sys.stderr)
    assert done.status == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1), file=sys.stderr)
    assert found["version"][0] == 4
    assert found["killed"]
    for name in ("udev", "alone"):
        facts = ("untouched", "linear", "freed", "gone", "sound")
        assert {each: found[name][each] for each in facts} == dict.fromkeys(facts, True), name
        assert found[name]["link"].startswith("../dm-")
        assert found[name]["ms"]["snapshot"] < found["tools"]["ms"]["snapshot"]


def test_whenever_the_power_is_cut_the_kernel_mounts_one_of_the_two_states(guest: Guest) -> None:
    """The old one before the commit, the new one after it, by a replay of the journal; the device goes on in use."""
    done = guest.link.run(["/usr/bin/python3", guest.push(redo_inside)], timeout=300.0)
    print(done.stderr, done.stdout, file=sys.stderr)
    assert done.status == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    stages = {stage: found[stage] for stage in found if stage.startswith(("after", "in "))}
    assert stages.pop("after the log") == "old"
    assert stages == dict.fromkeys(("after the commit", "in the middle", "after it", "in the end"), "new")
    assert found["blocks"] > 1280

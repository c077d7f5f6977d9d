"""Upgrades whose images never leave memory: kept over every kexec, and told truly where something else came between."""

from __future__ import annotations

from typing import Any

import pytest

from kupgrade.rehearsal import faults
from kupgrade.rehearsal.options import Options
from kupgrade.rehearsal.scenario import rehearse
from kupgrade.steps import registry
from tests.vm.hosts import say, skipped_without

pytestmark = pytest.mark.vm

OLD, NEW = "khokernel-7.2", "khokernel-7.3"


def run(*struck: str, **wanted: Any) -> list[dict[str, Any]]:
    """Each upgrade of one life of a virtual host."""
    parsed = tuple(faults.parse(each, registry.names()) for each in struck)
    with skipped_without():
        options = Options(store="luo", old=OLD, new=NEW, faults=parsed, **wanted)
        judged = dict(rehearse(options, say).judged)
    found = [dict(each) for each in judged.get("generations", [judged])]
    for each in found:
        print(f"{each['fault']}: {each['outcome']}, gap {each['client']['longest_gap_ms']} ms, {each['reason']}")
    return found


def test_images_stay_in_memory_there_and_back_again() -> None:
    """A worker killed with the images in its hands costs nothing; an agent killed in the new kernel finds them again;
    and the way back to the older release is an upgrade like any other."""
    found = run("kill-tool@preserve-images:effect", "kill-tool@restore:intent", further=(OLD,))
    assert [each["outcome"] for each in found] == ["rolled-back", "committed", "committed"], [
        each["findings"] for each in found
    ]
    assert {each["store"] for each in found} == {"luo"}
    assert found[2]["running_release"] == found[0]["old_release"]


def test_a_failed_restore_goes_back_with_the_same_images() -> None:
    """Preserved again before the restore was tried, they cross a second time: same processes, same connection."""
    (judged,) = run("restore-fails")
    assert judged["outcome"] == "rolled-back", judged["findings"]
    assert judged["client"]["resets"] == 0
    assert not judged["cold_start_expected"]


@pytest.mark.parametrize(
    ("fault", "reason"), [("holder-dies", "did not come through"), ("memory-not-taken", "no live update device")]
)
def test_lost_images_are_told_and_the_units_start_anew(fault: str, reason: str) -> None:
    """Nothing is restored from nothing: back on the old kernel, one healthy copy, and the reason in the journal."""
    (judged,) = run(fault)
    assert judged["upgrade_outcome"] == "rolled-back"
    assert judged["cold_start_expected"] and not judged["findings"]
    assert reason in judged["reason"]

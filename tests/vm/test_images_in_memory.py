"""Upgrades whose images never leave memory: kept over every kexec, and told truly where something else came between."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vm.test_kexec import lives
from tests.vm.test_kexec import run as run_life

pytestmark = pytest.mark.vm

OLD, NEW = "khokernel-7.2", "khokernel-7.3"


def run(*struck: str, **wanted: Any) -> list[dict[str, Any]]:
    """Each upgrade of one life of a virtual host."""
    return lives(run_life(*struck, store="luo", old=OLD, new=NEW, **wanted))


def test_images_stay_in_memory_there_and_back_again() -> None:
    """A worker killed with the images in its hands costs nothing; an agent killed in the new kernel finds them again;
    and the way back to the older release is an upgrade like any other."""
    found = run("kill-tool@preserve-images:effect", "kill-tool@restore:intent", further=(OLD,))
    assert [each["outcome"] for each in found] == ["rolled-back", "committed", "committed"], [
        each["findings"] for each in found
    ]
    assert {each["store"] for each in found} == {"luo"}
    assert found[2]["running_release"] == found[0]["old_release"]


def test_the_way_back_carries_them_and_lost_ones_are_told() -> None:
    """Preserved again before the restore was tried, images cross a second time: same processes, same connection. When
    their holder dies, or the new kernel takes no memory over, nothing is restored from nothing: back on the old kernel
    one healthy copy is started anew, and the reason stands in the journal.
    """
    kept, died, dropped = run("restore-fails", "holder-dies", "memory-not-taken")
    assert (kept["outcome"], kept["client"]["resets"], kept["cold_start_expected"]) == ("rolled-back", 0, False)
    for judged, reason in ((died, "did not come through"), (dropped, "no live update device")):
        assert judged["upgrade_outcome"] == "rolled-back" and not judged["findings"]
        assert judged["cold_start_expected"]
        assert reason in judged["reason"]

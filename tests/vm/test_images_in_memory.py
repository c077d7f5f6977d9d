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


def test_images_stay_in_memory_over_every_kexec_and_lost_ones_are_told() -> None:
    """A worker killed with the images in its hands costs nothing. When the restore fails they cross a second time, for
    they were preserved again before it was tried. When their holder dies nothing is restored from nothing: back on the
    old kernel one healthy copy is started anew, and the reason stands in the journal. An agent killed in the new kernel
    finds them again; and the way back to the older release is an upgrade like any other.
    """
    found = run(
        "kill-tool@preserve-images:effect", "restore-fails", "holder-dies", "kill-tool@restore:intent", further=(OLD,)
    )
    assert [each["upgrade_outcome"] for each in found] == ["rolled-back"] * 3 + ["committed"] * 2
    assert not [each["findings"] for each in found if each["findings"]]
    assert {each["store"] for each in found} == {"luo"}
    assert [each["cold_start_expected"] for each in found] == [False, False, True, False, False]
    assert "did not come through" in found[2]["reason"]
    assert found[4]["running_release"] == found[0]["old_release"]

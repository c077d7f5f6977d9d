"""Facts of the host as a whole."""

from __future__ import annotations

from pathlib import Path

from kupgrade import probe


def watchdog(root: Path, name: str, identity: str) -> None:
    folder = root / "sys/class/watchdog" / name
    folder.mkdir(parents=True)
    (folder / "identity").write_text(identity + "\n")


def test_a_watchdog_made_of_software_resets_no_kernel_after_this_one(tmp_path: Path) -> None:
    """softdog is a timer of this kernel and ends with it; a device beside it counts."""
    parameter = tmp_path / "sys/module/watchdog/parameters/stop_on_reboot"
    parameter.parent.mkdir(parents=True)
    parameter.write_text("0\n")
    watchdog(tmp_path, "watchdog0", "Software Watchdog")
    name, why = probe._watchdog(tmp_path)
    assert name == "" and "softdog" in why
    watchdog(tmp_path, "watchdog1", "iTCO_wdt")
    assert probe._watchdog(tmp_path) == ("watchdog1 (iTCO_wdt)", "")

"""The units of a boot: what they promise to the rest of it, read from their files."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from kupgrade.engines.base import CROSSING_TARGET

UNITS = Path(__file__).parents[2] / "packaging/systemd"


def values(unit: str, key: str) -> list[str]:
    lines = (UNITS / unit).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def test_a_firewall_that_is_loaded_does_not_take_the_lock_off() -> None:
    """Debian's nftables.service begins with "flush ruleset": the lock comes after it, both before the network."""
    after = " ".join(values("kupgrade-lock.service", "After")).split()
    before = " ".join(values("kupgrade-lock.service", "Before")).split()
    assert "nftables.service" in after and "network-pre.target" in before


def test_a_boot_to_the_crossing_target_goes_on_without_an_upgrade() -> None:
    """A soft-reboot, or a kexec by others, keeps the words of the crossing: the agent's unit leads on from there.

    Nothing but it is wanted by that target, so it must run there whether an upgrade is open or not.
    """
    assert values("kupgrade-resume.service", "ConditionPathExists") == ["|/var/lib/kupgrade/current"]
    words = [f"|systemd.unit={CROSSING_TARGET}"]
    assert values("kupgrade-resume.service", "ConditionKernelCommandLine") == words


@pytest.mark.parametrize(
    ("cmdline", "goes_on"),
    [
        (f"root=/dev/vda1 ro systemd.unit={CROSSING_TARGET} quiet", True),
        ("root=/dev/vda1 ro quiet", False),
        ("root=/dev/vda1 ro systemd.unit=rescue.target", False),
    ],
)
def test_only_a_boot_to_the_crossing_target_is_led_on_to_the_default(
    tmp_path: Path, cmdline: str, goes_on: bool
) -> None:
    """Whoever boots into the rescue shell while an upgrade is open stays there: multi-user.target would end it."""
    (command,) = values("kupgrade-resume.service", "ExecStopPost")
    (tmp_path / "cmdline").write_text(cmdline + "\n")
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "systemctl").chmod(0o755)
    text = command.removeprefix("-").replace("/proc/cmdline", str(tmp_path / "cmdline"))
    text = text.replace("/usr/bin/systemctl", str(tmp_path / "systemctl"))
    done = subprocess.run(shlex.split(text), timeout=30, check=False)
    asked = (tmp_path / "asked").read_text().split() if (tmp_path / "asked").exists() else []
    assert (done.returncode, asked) == (0, ["--no-block", "start", "default.target"] if goes_on else [])

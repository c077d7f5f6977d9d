"""Which watchdog guards a crossing by kexec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import Libc
from kupgrade.kernel.watchdog import SOFTWARE
from kupgrade.machine import crossing
from kupgrade.machine.crossing import RealCrossing
from kupgrade.machine.places import Places


@pytest.mark.parametrize(
    ("devices", "busy", "armed"),
    [
        ((SOFTWARE, "i6300ESB timer"), (), "watchdog1 (i6300ESB timer)"),
        (("i6300ESB timer", SOFTWARE), (), "watchdog0 (i6300ESB timer)"),
        ((SOFTWARE, "i6300ESB timer"), ("watchdog1",), f"watchdog0 ({SOFTWARE})"),
        ((SOFTWARE,), ("watchdog0",), "none: no device could be armed"),
    ],
)
def test_a_device_that_outlives_this_kernel_goes_first(
    devices: tuple[str, ...], busy: tuple[str, ...], armed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer in software ends with its kernel, and guards only the way to the jump."""
    for number, identity in enumerate(devices):
        folder = tmp_path / f"sys/class/watchdog/watchdog{number}"
        folder.mkdir(parents=True)
        (folder / "identity").write_text(f"{identity}\n")

    def arm(_calls: Any, device: Path, _timeout: int) -> None:
        if device.name in busy:
            raise KernelError("open", str(device), 16)

    monkeypatch.setattr(crossing.watchdog, "arm", arm)
    monkeypatch.setattr(crossing.watchdog, "stop_on_reboot", lambda _root: False)
    assert RealCrossing(Places(tmp_path), Libc()).arm_watchdog(60) == armed

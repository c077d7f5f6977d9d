from __future__ import annotations

import errno

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import watchdog


def test_facts_are_read_and_the_rest_is_unknown(put, tmp_path):
    """Attributes that a driver lacks are None."""
    top = "sys/class/watchdog/watchdog0/"
    for name, text in {"identity": "iTCO_wdt", "state": "active", "nowayout": "1", "timeout": "30"}.items():
        put(top + name, text + "\n")
    (found,) = watchdog.watchdogs(tmp_path)
    assert found == watchdog.WatchdogFacts("watchdog0", "iTCO_wdt", True, True, 30, None, None, None)


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True), ("-1", None), (None, None)])
def test_stop_on_reboot_may_be_up_to_the_driver(put, tmp_path, text, value):
    """-1 and an absent parameter are both unknown."""
    if text is not None:
        put("sys/module/watchdog/parameters/stop_on_reboot", text + "\n")
    assert watchdog.stop_on_reboot(tmp_path) is value


def test_arm_pet_disarm_write_what_the_driver_expects(libc, put):
    """The timeout by ioctl, a pet is any byte, V is the magic close."""
    device = put("dev/watchdog0", "")
    armed = watchdog.arm(libc, device, 60)
    armed.pet()
    armed.disarm()
    assert libc.calls == [("ioctl", watchdog.WDIOC_SETTIMEOUT, 60)]
    assert device.read_bytes() == b"\0V"
    assert armed.timeout == 60


def test_a_refused_timeout_stops_the_watchdog_again(libc, put):
    """A failed arm must not leave a countdown behind."""
    device = put("dev/watchdog0", "")
    libc.errors["ioctl"] = [errno.EINVAL]
    with pytest.raises(KernelError):
        watchdog.arm(libc, device, 100000)
    assert device.read_bytes() == b"V"


def test_leave_running_does_not_say_the_magic_word(libc, put):
    """For the next kernel to pet it."""
    device = put("dev/watchdog0", "")
    watchdog.arm(libc, device, 60).leave_running()
    assert device.read_bytes() == b""

"""Units that stand still: how systemd is asked to stop, keep down and start them, and what its answers come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host import stopping
from kupgrade.host.stopping import DROPIN, KeptDown, StopState, state_of
from kupgrade.host.systemd import Systemd
from kupgrade.machine.stopping import RealStopping
from kupgrade.model.workload import StopOrder

UP = {"LoadState": "loaded", "ActiveState": "active", "Result": "success"}
DOWN = {**UP, "ActiveState": "inactive"}


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that shows tmp_path/units/NAME, and at a stop or start puts NAME.stopped or NAME.started there."""
    folder, units = tmp_path / "bin", tmp_path / "units"
    folder.mkdir()
    units.mkdir()
    script = folder / "systemctl"
    script.write_text(f"""#!/bin/sh
cd {units}
echo "$@ $(cd {tmp_path} && echo run/kupgrade/units-let-go* etc/systemd/system/*.d/*.conf)" >> {tmp_path}/calls
verb=$1; shift
first=
for word; do case $word in
	--*) ;;
	*) case $verb in
		show) [ -z "$first" ] || echo; first=no; cat "$word" 2> /dev/null || echo LoadState=not-found ;;
		start) [ ! -e "$word.started" ] || mv "$word.started" "$word" ;;
		stop) [ ! -e "$word.stopped" ] || mv "$word.stopped" "$word" ;;
	esac ;;
esac; done
""")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(stopping, "_POLL", 0.01)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    return units


def put(units: Path, name: str, **values: str) -> None:
    (units / name).write_text("".join(f"{key}={value}\n" for key, value in values.items()))


def called(units: Path) -> list[str]:
    return (units.parent / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (DOWN, ""),
        ({"ActiveState": "failed", "Result": "signal", "ExecMainStatus": "15", "KillSignal": "15"}, ""),
        ({"ActiveState": "failed", "Result": "signal", "ExecMainStatus": "2", "KillSignal": "2"}, ""),
        ({"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "143", "KillSignal": "15"}, ""),
        ({"ActiveState": "failed", "Result": "signal", "ExecMainStatus": "9", "KillSignal": "15"}, "signal"),
        ({"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "1"}, "exit status 1"),
        ({"ActiveState": "failed", "Result": "timeout", "ExecMainStatus": "9"}, "TimeoutStopSec"),
        ({"ActiveState": "deactivating", "Result": "timeout"}, ""),
    ],
)
def test_who_ends_by_the_signal_that_asks_for_it_ended_cleanly(values: dict[str, str], words: str) -> None:
    """A kill, a crash or a failed stop command is none; a oneshot that systemd calls failed for SIGTERM is one."""
    found = state_of("a.service", {"LoadState": "loaded", **values}).unclean
    assert bool(found) is bool(words) and words in found


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"FragmentPath": "/etc/systemd/system/a.service"}, ""),
        ({"FragmentPath": "/run/systemd/generator/a.service"}, ""),
        ({"LoadState": "not-found"}, "does not know"),
        ({"Transient": "yes", "FragmentPath": "/run/systemd/transient/a.service"}, "transient"),
        ({"FragmentPath": "/run/systemd/system/a.service"}, "ends with the kernel"),
        ({"RefuseManualStop": "yes"}, "RefuseManualStop"),
    ],
)
def test_what_could_not_be_started_again_is_not_stopped(values: dict[str, str], words: str) -> None:
    """Known, from a file that outlives the kernel, and not protected against being stopped."""
    found = state_of("a.service", {"LoadState": "loaded", **values}).why_not
    assert bool(found) is bool(words) and words in found


def test_units_bring_those_that_stop_with_them_and_those_that_start_them(systemctl: Path) -> None:
    """Through every step of it, and without targets, which a boot needs."""
    put(systemctl, "a.service", **UP, RequiredBy="b.service multi-user.target", TriggeredBy="a.timer")
    put(systemctl, "b.service", **UP, TriggeredBy="b.socket", BoundBy="a.service")
    put(systemctl, "a.timer", **UP)
    put(systemctl, "b.socket", **DOWN)
    found = stopping.with_company(["a.service"])
    assert [each.name for each in found] == ["a.service", "b.service", "a.timer", "b.socket"]
    assert RealStopping(Systemd(systemctl.parent)).up(["a.service"]) == ("a.service", "b.service", "a.timer")


def test_a_unit_is_waited_for_until_it_has_stopped(systemctl: Path) -> None:
    """One call for all, so that systemd orders them; then the truth is asked of each."""
    put(systemctl, "a.service", **UP)
    put(systemctl, "a.service.stopped", **DOWN)
    put(systemctl, "b.timer", **DOWN)
    stopping.stop(["a.service", "b.timer"], {"a.service": 5.0})
    assert next(line.split(" run/")[0] for line in called(systemctl)) == "stop --no-block a.service b.timer"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({**UP, "ActiveState": "deactivating"}, ("did not stop in time", "still deactivating", "stop_timeout")),
        (
            {**UP, "ActiveState": "failed", "Result": "timeout"},
            ("did not stop cleanly", "systemd killed it", "restart"),
        ),
    ],
)
def test_a_unit_that_does_not_stop_as_it_should_is_told(
    systemctl: Path, after: dict[str, str], words: tuple[str, ...]
) -> None:
    """Too slow, or killed in the end: what happened, why, and what to write into the policy."""
    put(systemctl, "a.service", **UP)
    put(systemctl, "a.service.stopped", **after)
    with pytest.raises(KupgradeError) as raised:
        RealStopping(Systemd(systemctl.parent)).stop([StopOrder("a.service", 0.05)], ["a.service"])
    told = f"{raised.value.what} {raised.value.why} {raised.value.remedy}"
    assert all(word in told for word in words), told


def test_what_is_kept_down_is_started_before_it_is_no_longer(systemctl: Path) -> None:
    """The drop-in lies there until the start is queued, and the path that its condition wants only meanwhile."""
    root = systemctl.parent
    down = KeptDown(Systemd(root))
    mark = root / "run/kupgrade/units-let-go"
    mark.parent.mkdir(parents=True)
    mark.touch()  # of an earlier upgrade that was cut off: it would let everybody start at once
    own = root / "etc/systemd/system/a.service.d/10-own.conf"
    own.parent.mkdir()
    own.write_text("[Service]\n")
    down.lay(["a.service", "a.timer"], "20261121-041503-9f2c1a")
    assert down.units() == ("a.service", "a.timer") and not mark.exists()
    text = down.dropin("a.timer").read_text()
    assert "ConditionPathExists=/run/kupgrade/units-let-go" in text and "20261121-041503-9f2c1a" in text
    put(systemctl, "a.service", **DOWN)
    put(systemctl, "a.service.started", **{**UP, "ActiveState": "activating"})
    put(systemctl, "a.timer", **DOWN)
    assert down.let_go(["a.service", "a.timer"]) == ("a.timer",)
    reload, start, again = called(systemctl)[:3]
    assert reload.startswith("daemon-reload") and again.startswith("daemon-reload")
    assert start.startswith("start --no-block a.service a.timer")
    assert "units-let-go " in start and f"a.service.d/{DROPIN}" in start
    assert "units-let-go " in again and DROPIN not in again
    assert down.units() == () and not mark.exists() and own.exists()
    assert not (root / "etc/systemd/system/a.timer.d").exists()


def test_nobody_is_let_go_where_nobody_is_kept_down(systemctl: Path) -> None:
    """An upgrade for which nothing ran asks systemd for nothing."""
    assert KeptDown(Systemd(systemctl.parent)).let_go([]) == ()
    assert not (systemctl.parent / "calls").exists()


def test_a_kind_of_unit_that_has_not_all_properties_is_read() -> None:
    """A timer has no main process and no signal."""
    found = state_of("a.timer", {"LoadState": "loaded", "ActiveState": "active", "Job": "12"})
    assert found == StopState("a.timer", True, "active", True, "", 0, 15, "", False, False, ())
    assert found.up and not found.unclean

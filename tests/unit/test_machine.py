"""What the real machine's composition does around the loop, on a directory that stands for the root file system."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.machine import faults
from kupgrade.machine.host import keep_pids_free
from kupgrade.machine.places import Places


@pytest.fixture
def sysctl(tmp_path):
    """A root with pid_max and ns_last_pid; returns (root, write, read) for the latter."""
    folder = tmp_path / "proc/sys/kernel"
    folder.mkdir(parents=True)
    (folder / "pid_max").write_text("4194304\n")
    last = folder / "ns_last_pid"
    return tmp_path, lambda value: last.write_text(f"{value}\n"), lambda: int(last.read_text())


@pytest.mark.parametrize(
    ("last", "pids", "above"),
    [(300, (360, 371), 371), (360, (360, 371), 371), (10, (65000,), 65000)],
)
def test_pids_are_kept_free_from_now_on(sysctl, last, pids, above):
    """A fallen-back boot that has not come to the workloads' PIDs yet goes on above them."""
    root, write, read = sysctl
    write(last)
    keep_pids_free(pids, root)
    assert read() > above


@pytest.mark.parametrize(("last", "pids"), [(371, (360, 371)), (5000, (360,)), (10, ())])
def test_pids_that_are_passed_are_left_alone(sysctl, last, pids):
    """A boot that is above the workloads' PIDs already, or has none to keep, keeps its own counter."""
    root, write, read = sysctl
    write(last)
    keep_pids_free(pids, root)
    assert read() == last


def test_a_kernel_without_the_counter_is_not_an_error(tmp_path):
    """Without ns_last_pid (no CHECKPOINT_RESTORE) nothing is written."""
    keep_pids_free((360,), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def power_cut(tmp_path, monkeypatch):
    """A root with an armed power-cut at dump:effect."""
    monkeypatch.setenv("KUPGRADE_FAULTS", "1")
    monkeypatch.setattr(faults.time, "sleep", lambda _seconds: None)
    places = Places(tmp_path)
    places.state.mkdir(parents=True)
    (places.state / "fault.json").write_text(json.dumps({"fault": "power-cut", "step": "dump", "moment": "effect"}))
    return places


def test_the_fault_port_is_found_without_udev(power_cut):
    """The port is found by its name in sysfs, and told which power cut is due."""
    ports = power_cut.root / "sys/class/virtio-ports"
    for device, name in (("vport1p1", "org.kupgrade.lab"), ("vport1p2", "org.kupgrade.fault")):
        (ports / device).mkdir(parents=True)
        (ports / device / "name").write_text(f"{name}\n")
        (power_cut.root / "dev").mkdir(exist_ok=True)
        (power_cut.root / "dev" / device).touch()
    with pytest.raises(KupgradeError):  # the stand-in for the port does not end this test, as a reset would
        faults.strike(power_cut, "dump", "effect")
    assert (power_cut.root / "dev/vport1p2").read_text() == "power-cut dump effect\n"
    assert (power_cut.root / "dev/vport1p1").read_text() == ""


def test_a_power_cut_without_a_port_is_an_error(power_cut):
    """Where nobody can cut the power, the fault says so and writes no file."""
    with pytest.raises(KupgradeError, match="power cannot be cut"):
        faults.strike(power_cut, "dump", "effect")
    assert not (power_cut.root / "dev").exists()


def test_the_agent_of_the_next_boot_imports_nothing_of_a_kernel_beside() -> None:
    """Each module it imports is blackout: no spawner, no ACPI tables, no ELF reader."""
    code = (
        "import sys, kupgrade.resume\n"
        "words = ('spawner', 'spawn_box', 'standby', 'acpi', 'kspawn', 'window', 'elftools', 'structlog', 'msgspec')\n"
        "print([m for m in sys.modules if m.rpartition('.')[2].startswith(words) or m.split('.')[0] in words])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

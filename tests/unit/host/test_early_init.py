from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import early_init
from kupgrade.host.early_init import early_entries


@pytest.fixture(params=["/bin/sh", "/bin/bash"])
def boot(request, tmp_path):
    """Run early init in a fake root: its absolute paths are moved there, and /init notes that it ran."""
    shell = request.param
    if not Path(shell).exists():
        pytest.skip(f"{shell} is not installed")
    for name, text in {
        "proc/self/stat": "",
        "proc/sys/kernel/pid_max": "32768\n",
        "proc/sys/kernel/ns_last_pid": "1\n",
        "proc/sysrq-trigger": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def moved(text):
        for path in ("/proc", "/init", "/kupgrade-deadman"):
            text = text.replace(path, f"{tmp_path}{path}")
        return text.replace("/bin/sh ", f"{shell} ")

    def run(floor, deadline, sync_time=0):
        for entry in early_entries(floor, deadline):
            if stat.S_ISREG(entry.mode):
                text = entry.data.decode().replace(f"$1 + {early_init.SYNC_TIME}", f"$1 + {sync_time}")
                (tmp_path / entry.name).write_text(moved(text))
        init = tmp_path / "init"
        init.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/init-ran\n')
        init.chmod(0o755)
        argv = [shell, str(tmp_path / "kupgrade-init"), "single", "a b"]
        # No pipes: the dead-man would keep them open, and run() would wait for it.
        return subprocess.run(argv, timeout=20, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return run


def _read(path):
    return path.read_text().strip()


def test_pids_start_above_the_floor(boot, tmp_path):
    """pid_max is raised only as far as needed, the last PID becomes the floor, init gets its arguments."""
    assert boot(5000, 0).returncode == 0
    assert _read(tmp_path / "proc/sys/kernel/ns_last_pid") == "5000"
    assert _read(tmp_path / "proc/sys/kernel/pid_max") == "37768"
    assert _read(tmp_path / "init-ran") == "single a b"


def test_a_large_pid_max_stays(boot, tmp_path):
    """It is never lowered."""
    (tmp_path / "proc/sys/kernel/pid_max").write_text("4194304\n")
    boot(5000, 0)
    assert _read(tmp_path / "proc/sys/kernel/pid_max") == "4194304"


def test_without_a_floor_pids_are_left_alone(boot, tmp_path):
    """Floor 0 writes nothing."""
    boot(0, 0)
    assert _read(tmp_path / "proc/sys/kernel/ns_last_pid") == "1"


def test_init_runs_whatever_fails(boot, tmp_path):
    """A kernel without the files, or a /proc that cannot be mounted, still boots."""
    for name in ("sys/kernel/ns_last_pid", "sysrq-trigger"):
        (tmp_path / "proc" / name).unlink()
    assert boot(5000, 300).returncode == 0
    assert (tmp_path / "init-ran").exists()


def _deadman(tmp_path):
    """PIDs of shells that run the script, as the agent will look for them."""
    script, found = f"{tmp_path}/kupgrade-deadman", []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if script in path.read_text(errors="replace").split("\0")[:2]:
                found.append(int(path.parent.name))
    return found


def _wait(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_the_deadman_fires_after_its_deadline(boot, tmp_path):
    """Sync, remount read-only, reset: in this order, by a process that outlives init."""
    boot(0, 1)
    assert _wait(lambda: (tmp_path / "proc/sysrq-trigger").read_text() == "s\nu\nb\n")


def _ignores(pid, *signals):
    """Whether a process ignores all of them: SigIgn in /proc/PID/status, proc(5)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigIgn:"):
                return all(int(line.split()[1], 16) >> (each - 1) & 1 for each in signals)
    return False


def test_the_deadman_ignores_what_switch_root_sends_but_not_a_kill(boot, tmp_path):
    """SIGTERM and SIGHUP are ignored; killed, nobody is left who could fire."""
    boot(0, 20)
    assert _wait(lambda: any(_ignores(pid, signal.SIGTERM, signal.SIGHUP) for pid in _deadman(tmp_path)))
    (pid,) = _deadman(tmp_path)[:1]
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.2)
    assert pid in _deadman(tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert _wait(lambda: not _deadman(tmp_path))
    assert (tmp_path / "proc/sysrq-trigger").read_text() == ""


def test_deadline_0_starts_no_deadman(boot, tmp_path):
    """The dead-man is an option."""
    boot(0, 0)
    assert not _deadman(tmp_path)


def test_the_archive_brings_dev_null():
    """dash starts no background process without it, and devtmpfs is not mounted yet."""
    entries = {entry.name: entry for entry in early_entries(5000, 300)}
    assert stat.S_ISCHR(entries["dev/null"].mode)
    assert entries["dev/null"].device == (1, 3)
    assert stat.S_IMODE(entries["kupgrade-init"].mode) & 0o111


@pytest.mark.parametrize(("floor", "deadline"), [(-1, 0), (4194304, 0), (0, -1)])
def test_values_the_kernel_cannot_take_are_refused(floor, deadline):
    """PIDs end at 4194304."""
    with pytest.raises(BadInputError):
        early_init.early_init(floor, deadline)

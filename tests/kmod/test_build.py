"""The module builds without a word, and does and refuses in a virtual host what its header says. Minutes; as root."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kupgrade.rehearsal.cache import Cache
from kupgrade.rehearsal.spawn_module import choose, module
from kupgrade.rehearsal.suites import Archive, mirror
from tests.kmod.build import KERNELS

pytestmark = [pytest.mark.vm, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for chroot and network")]
HERE = Path(__file__).parent
BOX = "memmap=64M$0x30000000 no_ipi_broadcast=1"


class Guest:
    """A virtual host of four CPUs with the module for its kernel, and the scripts beside it."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def lab(self, verb: str, *words: str, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kupgrade.rehearsal", verb, "--state", str(self.state), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=HERE.parents[1])

    def run(self, script: str, seconds: int = 200) -> subprocess.CompletedProcess[str]:
        return self.lab("run", "--timeout", str(seconds), "--", script)


@contextmanager
def guest(kernel: str) -> Iterator[Guest]:
    headers = choose(Archive(Cache.default(), mirror()), kernel)
    built = module(Archive(Cache.default(), mirror()), headers)
    with tempfile.TemporaryDirectory(prefix="kupgrade-lab-", dir="/run") as directory:
        host = Guest(Path(directory))
        words = ("--from", headers.release, "--to", headers.release, "--boot", "direct", "--cpus", "4", "--append", BOX)
        up = host.lab("up", *words)
        assert up.returncode == 0, up.stderr
        try:
            for source in (built, *sorted(HERE.glob("inside*.py")), HERE / "fuzz.py"):
                assert host.lab("copy", str(source), f"/opt/{source.name}").returncode == 0
            yield host
        finally:
            host.lab("down")


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_module_builds_without_a_word(kernel):
    """No warning of the compiler (W=1), of sparse where the headers let it run, or of modpost."""
    archive = Archive(Cache.default(), mirror())
    assert module(archive, choose(archive, kernel)).is_file()


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[-1]])
def test_it_does_and_refuses_what_the_header_says_and_leaves(kernel):
    """All checks of inside.py; a minute of random calls harms nothing; the kernel ends where it was told to go on."""
    with guest(kernel) as host:
        done = host.run("python3 /opt/inside.py check /opt/kspawn.ko")
        assert done.returncode == 0, done.stdout
        done = host.run("python3 /opt/fuzz.py 60 && ! dmesg | grep -E 'WARNING:|BUG:|Oops'")
        assert done.returncode == 0, done.stdout
        host.run("sync; setsid python3 /opt/inside.py leave < /dev/null > /dev/null 2>&1 &", 10)
        deadline = time.monotonic() + 90
        while "LEFT" not in (log := (host.state / "serial.log").read_text(errors="replace")):
            assert time.monotonic() < deadline, log[-2000:]
            time.sleep(0.5)


def test_a_panic_leaves_its_flag():
    """The flag is found in the set-aside memory after the panic's reset."""
    with guest(KERNELS[0]) as host:
        assert host.run("insmod /opt/kspawn.ko").returncode == 0
        host.run("cp /opt/* /var/tmp; sync; exec python3 /opt/inside.py panic", 60)
        assert host.lab("wait", "--timeout", "120").returncode == 0
        done = host.run("python3 /opt/inside.py panicked /opt/kspawn.ko")
        assert done.returncode == 0, done.stdout

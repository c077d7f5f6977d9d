"""Sandboxes are made again by this machine's kernel, each in a process that ends with its test."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host.criu import RestoreOptions
from kupgrade.host.criu_child import Inside
from kupgrade.kernel.mount_layout import Layout
from kupgrade.machine import restorer
from kupgrade.machine.places import Places

# As a spawned kernel's agent: a root file system is mounted at TOP, and is this process's root. There somebody makes a
# sandbox as systemd does; its layout is made again; both are told.
SCRIPT = r"""
import dataclasses, json, os, signal, socket, sys
from pathlib import Path
from kupgrade.errors import KupgradeError
from kupgrade.kernel import mount_layout, namespaces
from kupgrade.kernel.libc import Libc
from kupgrade.machine import enclosure

top, change = Path(sys.argv[1]), sys.argv[2]
libc = Libc()
libc.unshare(enclosure.CLONE_NEWNS | enclosure.CLONE_NEWUTS)
libc.mount("none", Path("/"), "none", 1 << 18 | 16384)
libc.mount("/", top, "none", 4096 | 16384)
os.chroot(top)
os.chdir("/")
for name in ("run", "tmp"):
    libc.mount("tmpfs", Path("/" + name), "tmpfs", 6, "size=1m")
for name in ("run/own", "run/inaccessible", "run/hidden", "tmp/systemd-private-" + "0" * 32 + "-a/tmp"):
    Path("/" + name).mkdir(parents=True)
Path("/run/inaccessible").chmod(0)
Path("/run/file").touch()

told, tell = os.pipe()
theirs = os.fork()
if theirs == 0:
    libc.unshare(enclosure.CLONE_NEWNS | enclosure.CLONE_NEWUTS)
    socket.sethostname("sandbox")
    def bind(source, target, flags=0):
        libc.mount(source, Path(target), "none", 4096)
        libc.mount("none", Path(target), "none", 4096 | 32 | flags)
    bind("/run/own", "/usr/share", 1 | 2)
    bind("/run/inaccessible", "/home", 1)
    bind("/run/file", "/etc/hosts", 1)
    bind("/run/inaccessible", "/run/hidden", 1)
    libc.mount("none", Path("/run"), "none", 4096 | 32 | 1 | 2 | 4)
    bind("/tmp/systemd-private-" + "0" * 32 + "-a/tmp", "/tmp", 2 | 4)
    libc.mount("tmpfs", Path("/opt"), "tmpfs", 2, "size=64k,mode=750")
    os.mknod("/opt/null", 0o20666, os.makedev(1, 3))
    os.chmod("/opt/null", 0o666)
    os.symlink("/proc/self/fd", "/opt/fd")
    os.mkdir("/opt/shm")
    bind("/run/own", "/opt/shm")
    libc.mount("none", Path("/opt"), "none", 4096 | 32 | 1 | 2)
    bind("/", "/mnt")
    libc.mount("proc", Path("/proc"), "proc", 2 | 4 | 8, "hidepid=invisible")
    bind("/proc/sys", "/proc/sys", 1 | 8)
    libc.mount("none", Path("/"), "none", 4096 | 32 | 1 | 8)
    os.write(tell, b"!")
    signal.pause()
os.read(told, 1)

def look(pid):
    view = Path(f"/proc/{pid}/root")
    nodes = [Path("/opt", each) for each in ("null", "fd", "shm")]
    return {
        "mounts": [[m.mountpoint, m.fstype, sorted(m.options), m.subroot.replace(BOOT, "0" * 32).split("/")[-2:]]
                   for m in mount_layout.visible(namespaces.mounts(pid))],
        "nodes": [[str(n), (view / str(n)[1:]).lstat().st_mode, (view / str(n)[1:]).lstat().st_rdev] for n in nodes],
        "home": (view / "home").stat().st_mode,
        "name": namespaces.hostname(pid),
    }

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
view = Path(f"/proc/{theirs}/root")
layout = mount_layout.layout(namespaces.mounts(theirs), namespaces.mounts(os.getpid()), view, ())
layout = dataclasses.replace(layout, hostname=namespaces.hostname(theirs))
before = look(theirs)
os.kill(theirs, 9)
os.waitpid(theirs, 0)
if change == "early":  # another kernel, in which less is there yet
    libc.umount2(Path("/tmp"), 2)
    libc.umount2(Path("/run"), 2)
    libc.mount("tmpfs", Path("/run"), "tmpfs", 6, "size=1m")
elif change == "gone":
    layout = dataclasses.replace(layout, layers=tuple(
        dataclasses.replace(each, source="/nowhere") if each.mountpoint == "/mnt" else each for each in layout.layers))
enclosure.prepare([layout])
try:
    with enclosure.made(layout, ("mnt", "uts"), top) as pid:
        after = look(pid)
        libc.mount("tmpfs", Path("/srv"), "tmpfs", 0, "size=64k")
        later = [m.mountpoint for m in namespaces.mounts(pid)].count("/srv")
        own = [m.mountpoint for m in namespaces.mounts(os.getpid())].count("/home")
    left = os.path.exists(f"/proc/{pid}")
    print(json.dumps({"before": before, "after": after, "later": later, "own": own, "left": left}))
except KupgradeError as error:
    print(json.dumps({"error": str(error)}))
"""


def told(tmp_path: Path, change: str) -> dict[str, Any]:
    """Whoever may not make namespaces cannot run a spawned kernel, either."""
    argv = [sys.executable, "-c", SCRIPT, str(tmp_path), change]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60.0, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces")


@needs_root
@pytest.mark.parametrize("change", ["", "early"])
def test_a_sandbox_is_made_again_as_it_was(tmp_path: Path, change: str) -> None:
    """Its mounts with their restrictions, its nodes, its name, whatever of the host is mounted so early."""
    answer = told(tmp_path, change)
    assert answer["after"] == answer["before"]
    assert answer["after"]["name"] == "sandbox"
    mounted = {each[0]: each for each in answer["after"]["mounts"]}
    assert {"ro", "noexec"} <= {*mounted["/"][2]} and {"ro"} <= {*mounted["/home"][2]}
    assert {"ro"} <= {*mounted["/proc/sys"][2]}
    assert (answer["own"], answer["left"]) == (0, False)


@needs_root
def test_what_the_host_mounts_later_is_seen_inside(tmp_path: Path) -> None:
    """As in the namespaces that systemd makes."""
    assert told(tmp_path, "")["later"] == 1


@needs_root
def test_a_source_that_is_gone_is_told(tmp_path: Path) -> None:
    """A service must not be restored with less around it than before."""
    answer = told(tmp_path, "gone")
    assert "there is no /nowhere for /mnt" in answer["error"]


def test_criu_is_inside_of_what_was_made_and_its_holder_ends_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no unit's start process waits; what could not be made is the restore's answer."""
    did: list[object] = []

    @contextmanager
    def made(layout: Layout, kinds: tuple[str, ...]) -> Iterator[int]:
        if not layout.hostname:
            raise KupgradeError("A sandbox could not be made again", "no reason")
        did.append((layout.hostname, kinds))
        yield os.getpid()
        did.append("ended")

    class Criu:
        def restore(self, options: RestoreOptions) -> int:
            did.append(options.inside)
            return 77

    monkeypatch.setattr(restorer.enclosure, "made", made)
    monkeypatch.setattr(restorer, "Criu", Criu)
    monkeypatch.setattr(restorer.cgroup, "enter", lambda _: None)
    monkeypatch.setattr(restorer.cells, "fill", lambda *_: None)
    places = Places(tmp_path)
    request = restorer.Request(
        directory=str(tmp_path),
        streams={},
        pidfile=str(tmp_path / "pid"),
        cgroup="system.slice/x.service",
        unit=False,
        deadline=5.0,
        sandbox=("mnt", "uts"),
        layout=Layout(hostname="x"),
    )
    assert restorer._serve(places, "x", request, {}).pid == 77
    assert did == [("x", ("mnt", "uts")), Inside(os.getpid(), ("mnt", "uts")), "ended"]
    assert (tmp_path / "pid").read_text() == "77\n"
    failed = restorer._serve(places, "x", dataclasses.replace(request, layout=Layout()), {})
    assert (failed.pid, "no reason" in failed.error) == (0, True)

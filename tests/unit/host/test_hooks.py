"""Directories of hooks, and the call of one: real files and real processes."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kupgrade.host import hooks
from kupgrade.host.hooks import Called, call, find
from kupgrade.model.hook import HookPoint


def put(root: Path, layer: str, point: str, name: str, text: str = "exit 0", mode: int = 0o755) -> Path:
    path = root / layer / "kupgrade/hooks" / f"{point}.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def test_they_are_called_by_name_over_all_directories_and_etc_wins(tmp_path: Path) -> None:
    """Lexical order over the three; the same name in a later directory replaces, a link to /dev/null masks."""
    put(tmp_path, "usr/lib", "gate", "20-b")
    put(tmp_path, "usr/lib", "gate", "10-a", "exit 1")
    own = put(tmp_path, "etc", "gate", "10-a")
    put(tmp_path, "run", "gate", "15-c")
    put(tmp_path, "usr/lib", "gate", "30-masked")
    (own.parent / "30-masked").symlink_to("/dev/null")
    put(tmp_path, "usr/lib", "commit", "05-first")
    for left in (".hidden", "10-a~", "10-a.dpkg-old", "20-b.rpmsave"):
        put(tmp_path, "etc", "gate", left)
    found, faults = find(tmp_path)
    assert [(h.point, h.name) for h in found] == [
        (HookPoint.GATE, "10-a"), (HookPoint.GATE, "15-c"), (HookPoint.GATE, "20-b"), (HookPoint.COMMIT, "05-first"),
    ]  # fmt: skip
    assert found[0].path == str(own)
    assert not faults


def test_the_inverse_is_the_file_beside_it(tmp_path: Path) -> None:
    """NAME.undo is no hook of its own; it follows the same rules of names and masks."""
    put(tmp_path, "usr/lib", "pre-dump", "10-a")
    undo = put(tmp_path, "etc", "pre-dump", "10-a.undo", "exit 0 # back")
    put(tmp_path, "usr/lib", "pre-dump", "20-b")
    put(tmp_path, "usr/lib", "pre-dump", "30-orphan.undo")
    first, second = find(tmp_path)[0]
    assert (first.name, first.undo, len(first.undo_digest)) == ("10-a", str(undo), 64)
    assert first.digest != first.undo_digest
    assert (second.name, second.undo, second.undo_digest) == ("20-b", "", "")


@pytest.mark.parametrize(
    ("mode", "why", "remedy"),
    [(0o644, "not executable", "chmod 755"), (0o777, "written by others", "chmod go-w"), (0o775, "0775", "chmod go-w")],
)
def test_what_must_not_be_called_is_told_with_its_remedy(tmp_path: Path, mode: int, why: str, remedy: str) -> None:
    """A hook that others could write, or that cannot be executed, is a fault and never a hook."""
    path = put(tmp_path, "etc", "gate", "10-a", mode=mode)
    found, (fault,) = find(tmp_path)
    assert not found
    assert fault.path == str(path)
    assert why in fault.why
    assert remedy in fault.remedy


def test_a_bad_inverse_takes_its_hook_along(tmp_path: Path) -> None:
    """What could not be taken back safely is not done."""
    put(tmp_path, "etc", "gate", "10-a")
    put(tmp_path, "etc", "gate", "10-a.undo", mode=0o666)
    found, faults = find(tmp_path)
    assert (found, len(faults)) == ((), 1)


def test_a_directory_that_others_can_write_is_a_fault(tmp_path: Path) -> None:
    """Whoever can write it could add a hook."""
    path = put(tmp_path, "etc", "gate", "10-a")
    path.parent.chmod(0o777)
    found, (fault,) = find(tmp_path)
    assert not found
    assert fault.path == str(path.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_hook_of_somebody_else_is_a_fault(tmp_path: Path) -> None:
    """Its owner could change it at any time; a link to such a file counts as well."""
    os.chown(put(tmp_path, "etc", "gate", "10-a"), 1234, -1)
    link = put(tmp_path, "etc", "gate", "20-b")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("#!/bin/sh\n")
    (tmp_path / "elsewhere").chmod(0o755)
    os.chown(tmp_path / "elsewhere", 1234, -1)
    found, faults = find(tmp_path)
    assert not found
    assert {fault.why for fault in faults} == {"belongs to user 1234"}


def test_a_directory_and_a_dangling_link_are_faults(tmp_path: Path) -> None:
    """Neither can be called; nothing raises."""
    folder = put(tmp_path, "etc", "gate", "10-a").parent
    (folder / "20-dir").mkdir()
    (folder / "30-dangling").symlink_to(tmp_path / "nowhere")
    found, faults = find(tmp_path)
    assert [h.name for h in found] == ["10-a"]
    assert sorted(Path(fault.path).name for fault in faults) == ["20-dir", "30-dangling"]


@pytest.mark.parametrize("name", ["10 a", "10-\n", "10-ä", "$(id)"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    """They stand in plans, logs and the environment of others."""
    put(tmp_path, "etc", "gate", name)
    found, (fault,) = find(tmp_path)
    assert not found
    assert "name with other characters" in fault.why


def test_the_environment_is_clean_and_stdin_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment, nothing to read, the root directory, a session of its own."""
    monkeypatch.setenv("SECRET", "hunter2")
    path = put(
        tmp_path, "etc", "gate", "10-a", "env | grep -v -e ^_= -e ^SHLVL= -e ^PWD= | sort; pwd; cat; ps -o sid= $$"
    )
    called = call(str(path), {"KUPGRADE_STEP": "gate"}, 10)
    lines = called.output.splitlines()
    assert lines[:4] == ["KUPGRADE_STEP=gate", "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "/"]
    assert int(lines[4]) != os.getsid(0)
    assert called.status == 0


@pytest.mark.parametrize("status", [0, 1, 75, 99])
def test_the_exit_status_comes_back(tmp_path: Path, status: int) -> None:
    """With both streams of what it wrote."""
    path = put(tmp_path, "etc", "gate", "10-a", f"echo out; echo err >&2; exit {status}")
    assert call(str(path), {}, 10) == Called(status, "out\nerr")


def test_one_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    """Its status is None, and what it wrote until then is kept."""
    path = put(tmp_path, "etc", "gate", "10-a", "echo begun; sleep 1000 & echo $!; wait")
    begun = time.monotonic()
    called = call(str(path), {}, 0.5)
    assert time.monotonic() - begun < 20
    assert called.status is None
    child = int(called.output.splitlines()[1])
    while _runs(child):  # it was sent SIGKILL; that it has ended may be a moment later
        assert time.monotonic() - begun < 20
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_what_it_leaves_behind_does_not_hold_the_caller(tmp_path: Path) -> None:
    """A child that keeps the output open is killed when the hook has ended."""
    path = put(tmp_path, "etc", "gate", "10-a", "sleep 1000 & exit 0")
    begun = time.monotonic()
    assert call(str(path), {}, 600).status == 0
    assert time.monotonic() - begun < 60


def test_it_ends_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    """The next worker calls its undo: that must not run beside it."""
    if not hooks._with_caller():
        pytest.skip("setpriv(1) of this host cannot do it")
    path = put(
        tmp_path, "etc", "gate", "10-a", f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 1000"
    )
    code = f"from kupgrade.host.hooks import call; call({str(path)!r}, {{}}, 600)"
    caller = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists():
            assert caller.poll() is None and time.monotonic() < deadline
        ended = os.pidfd_open(int((tmp_path / "pid").read_text()))
    finally:
        caller.kill()
        caller.wait()
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        assert selector.select(30), "the hook runs on"
    os.close(ended)


def test_output_is_bounded(tmp_path: Path) -> None:
    """A hook that writes without end fills neither memory nor the journal."""
    path = put(tmp_path, "etc", "gate", "10-a", "yes | head -c 3000000")
    called = call(str(path), {}, 60)
    assert (called.status, len(called.output) <= hooks.OUTPUT_LIMIT, called.cut) == (0, True, True)


def test_a_file_that_is_no_program_is_an_error(tmp_path: Path) -> None:
    """Not a hook that said yes."""
    path = put(tmp_path, "etc", "gate", "10-a")
    path.write_text("#!/no/such/interpreter\n")
    try:
        status = call(str(path), {}, 10).status
    except OSError:
        return
    assert status not in (0, 75)

"""Policies that were damaged or mistyped: refused with the place, never a fault, never half a policy."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import BadInputError
from kupgrade.policy import load
from tests.unit.policies import of, put, refusal

HUGE = "0x" + "f" * 9000  # tomllib reads it, and Python refuses to write it in digits


@pytest.mark.parametrize(
    "text",
    [
        f"max_blackout = {'9' * 400}",
        f"max_blackout = {HUGE}",
        f"panic_timeout = -{'9' * 400}",
        f"panic_timeout = {HUGE}",
        f"keep_services = [{HUGE}]",
        f"engine = {HUGE}",
        f"[engine.spawn]\nmemory = {HUGE}",
        f"[[workload]]\nname = {HUGE}",
        f"[[workload]]\nname = 'a'\nprobe = {HUGE}",
        f"[[window]]\nstart = {HUGE}\nlength = '2h'",
        f"nonsense = {{ a = [{{ b = {HUGE} }}] }}",
    ],
)
def test_a_number_of_any_length_is_refused(text: str) -> None:
    """TOML's integers have 64 bits; Python's have no end, and cannot all be written or made a float."""
    assert "too large" in refusal(text)


@pytest.mark.parametrize("key", ["deadline", "max_blackout", "hooks.timeout", "engine.kexec.network_timeout"])
@pytest.mark.parametrize("value", ["1e300", '"9999999y"', '"8d"'])
def test_a_time_that_no_timer_takes_is_refused(key: str, value: str) -> None:
    """poll(2), sleep(1) and the clocks have limits, and would tell in the middle of an upgrade."""
    assert "7 days" in refusal(f"{key} = {value}")


def test_the_longest_times_are_taken() -> None:
    """A week for what is waited for; a new kernel may serve for longer before it becomes the default."""
    assert of('deadline = "7d"\nsoak = "4weeks"').soak == 28 * 86400
    assert "366 days" in refusal('soak = "2y"')


@pytest.mark.parametrize("value", ["0.5", '"500ms"', '"999ms"'])
def test_a_deadline_below_a_second_is_refused(value: str) -> None:
    """The dead-man of the new kernel counts whole seconds, and 0 means: there is none."""
    assert "1 second" in refusal(f"deadline = {value}")


@pytest.mark.parametrize("names", ['["spwan"]', '["kexec", "reboot"]', '["KEXEC"]'])
def test_an_engine_that_does_not_exist_is_refused(names: str) -> None:
    """A mistyped engine was left out, and the upgrade would cross by the other one."""
    assert '"spawn"' in refusal(f"[engine]\norder = {names}")


def _refused(root: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        load(root)
    return str(caught.value)


@pytest.mark.parametrize("target", ["nowhere/at/all/x.toml", "x.toml", "/dev/zero", "/etc/passwd/x.toml"])
def test_a_link_that_leads_to_no_file_is_refused(tmp_path: Path, target: str) -> None:
    """Into a directory that is not there, to itself, to a device, through a file."""
    path = put(tmp_path, "etc", "x.toml", "")
    path.unlink()
    path.symlink_to(target)
    assert "x.toml" in _refused(tmp_path)


def test_a_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    """A directory called like a drop-in holds what somebody thinks is in force."""
    path = put(tmp_path, "etc", "x.toml", "")
    path.unlink()
    path.mkdir(0o755)
    assert "not a regular file" in _refused(tmp_path)


@pytest.mark.parametrize("kind", ["file", "dangling", "loop"])
def test_a_policy_directory_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    """A link to a file system that is not mounted hides the policy: it is not "no policy"."""
    folder = tmp_path / "etc/kupgrade/policy.d"
    folder.parent.mkdir(parents=True, mode=0o755)
    if kind == "file":
        folder.touch(0o644)
    else:
        folder.symlink_to("policy.d" if kind == "loop" else "/nowhere/policy.d")
    assert "policy.d is not a directory" in _refused(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs chown")
def test_a_directory_behind_a_link_is_refused_where_others_could_swap_it(tmp_path: Path) -> None:
    """As for files: who owns a directory on the way decides what the link leads to."""
    theirs = tmp_path / "home"
    (theirs / "policy.d").mkdir(parents=True, mode=0o755)
    os.chown(theirs, 1234, 1234)
    link = tmp_path / "etc/kupgrade/policy.d"
    link.parent.mkdir(parents=True, mode=0o755)
    link.symlink_to(theirs / "policy.d")
    assert "does not belong to root" in _refused(tmp_path)


def test_status_tells_what_is_open_whatever_the_policy_is(tmp_path: Path) -> None:
    """A damaged policy is a BadInputError to every verb, which status tells beside the rest."""
    from click.testing import CliRunner

    from kupgrade.cli.composition import Composition
    from kupgrade.cli.main import cli

    path = put(tmp_path, "etc", "x.toml", "")
    path.unlink()
    path.symlink_to("nowhere/x.toml")
    composed: Any = Composition(root=tmp_path, euid=lambda: 0, running_release=lambda: "6.1")
    result = CliRunner().invoke(cli, ["status"], obj=composed)
    assert (result.exit_code, "No upgrade is open" in result.stdout) == (0, True)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout", "/proc/self/fd/1", "//dev/null", "/tmp/../dev/null"])
def test_metrics_never_take_the_place_of_a_device(path: str) -> None:
    """They are renamed into place: /dev/null would become a regular file for all the system. None is ""."""
    assert '"" for none' in refusal(f'[metrics]\ntextfile = "{path}"')


@pytest.mark.skipif(os.geteuid() != 0, reason="needs seteuid")
@pytest.mark.parametrize(("what", "mode"), [("policy.d", 0o700), ("policy.d", 0o744), (".", 0o700)])
def test_a_directory_that_may_not_be_read_is_not_an_empty_one(what: str, mode: int) -> None:
    """An ordinary user's `policy check` says that it cannot tell, and not that there is no policy."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own directories are root's alone
    try:
        root.chmod(0o755)
        put(root, "etc", "x.toml", "deadline = 5")
        (root / "etc/kupgrade" / what).chmod(mode)
        os.seteuid(65534)
        try:
            assert "cannot be read" in _refused(root)
        finally:
            os.seteuid(0)
    finally:
        shutil.rmtree(root)


def test_a_file_on_the_way_to_the_policy_is_told(tmp_path: Path) -> None:
    """/etc/kupgrade is no directory: what was meant by it is not known."""
    (tmp_path / "etc").mkdir(0o755)
    (tmp_path / "etc/kupgrade").touch(0o644)
    assert "etc/kupgrade" in _refused(tmp_path)

"""The files of a policy: which count, in which order, and which are not taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.model.policy import Policy
from kupgrade.policy import drop_ins, find_line, load, merge, parse
from tests.unit.policies import of, put


def test_nothing_is_the_default(tmp_path: Path) -> None:
    """Without drop-ins the built-in defaults hold."""
    assert load(tmp_path) == Policy()


def test_layers_merge_by_file_name(tmp_path: Path) -> None:
    """Names order the files whatever their layer; tables and workloads of one name merge."""
    put(
        tmp_path,
        "etc",
        "10-a.toml",
        "deadline = 10\npanic_timeout = 1\n[[workload]]\nname='d'\nunit='d.service'\n",
    )
    put(tmp_path, "usr/lib", "20-b.toml", "deadline = 20\n[[workload]]\nname='d'\nmax_blackout=1\n")
    policy = load(tmp_path)
    assert (policy.deadline, policy.panic_timeout) == (20, 1)
    assert [(w.unit, w.max_blackout) for w in policy.workloads] == [("d.service", 1)]


def test_a_higher_layer_masks_the_same_name(tmp_path: Path) -> None:
    """The same name in /etc replaces the file of /usr/lib whole."""
    put(tmp_path, "usr/lib", "10-a.toml", "deadline = 10\npanic_timeout = 1\n")
    put(tmp_path, "etc", "10-a.toml", "deadline = 30\n")
    assert (load(tmp_path).deadline, load(tmp_path).panic_timeout) == (30, 5)


def test_a_link_to_dev_null_masks(tmp_path: Path) -> None:
    """A link to /dev/null removes a file without replacement."""
    put(tmp_path, "usr/lib", "10-a.toml", "deadline = 10\n")
    put(tmp_path, "etc", "10-a.toml", "").unlink()
    (tmp_path / "etc/kupgrade/policy.d/10-a.toml").symlink_to("/dev/null")
    assert load(tmp_path) == Policy() and drop_ins(tmp_path) == ()


def test_the_file_at_fault_is_named(tmp_path: Path) -> None:
    """What only the merged policy tells is blamed on the file that set it last."""
    put(tmp_path, "etc", "10-a.toml", "[[workload]]\nname='a'\nunit='a.service'\n")
    put(tmp_path, "etc", "20-b.toml", "[[workload]]\nname='a'\n[workload.probe]\nkind='tcp'\n")
    with pytest.raises(BadInputError, match=r"20-b\.toml"):
        load(tmp_path)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\0", b"a" * 100, b"[" * 5000, b"a = " + b"[" * 5000])
def test_garbage_is_refused(data: bytes) -> None:
    """Bytes that are no TOML are refused, never a traceback."""
    with pytest.raises(BadInputError):
        merge((parse(Path("x.toml"), data),))


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    """No text makes the loader fail in any other way."""
    try:
        of(text)
    except BadInputError:
        pass
    find_line(text, ("deadline",))


@pytest.mark.parametrize("what", ["file", "directory", "parent"])
def test_modes_that_let_others_write_are_refused(tmp_path: Path, what: str) -> None:
    """Whoever could have written the policy decides what the upgrade does: root alone may."""
    path = put(tmp_path, "etc", "10-a.toml", "deadline = 10\n")
    {"file": path, "directory": path.parent, "parent": path.parent.parent}[what].chmod(0o777)
    with pytest.raises(BadInputError, match="chmod go-w"):
        load(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs chown")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_other_owners_are_refused(tmp_path: Path, what: str) -> None:
    """A file or directory of another user is refused."""
    path = put(tmp_path, "etc", "10-a.toml", "deadline = 10\n")
    os.chown(path if what == "file" else path.parent, 1234, 1234)
    with pytest.raises(BadInputError, match="does not belong to root"):
        load(tmp_path)


def test_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A pipe or a directory in place of a file neither blocks nor passes."""
    path = put(tmp_path, "etc", "10-a.toml", "")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadInputError, match="not a regular file"):
        load(tmp_path)
    path.unlink()
    path.symlink_to("nowhere.toml")
    with pytest.raises(BadInputError):
        load(tmp_path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Only *.toml counts: editors' backups and hidden files do not."""
    for name in ("10-a.toml~", ".10-a.toml", "README"):
        put(tmp_path, "etc", name, "nonsense")
    assert load(tmp_path) == Policy()

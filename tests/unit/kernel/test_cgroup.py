from __future__ import annotations

import errno
import os

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import cgroup
from kupgrade.kernel.cgroup import FreezerState

UNIT = "/system.slice/nginx.service"


@pytest.fixture
def make(put):
    """A cgroup in the fake hierarchy."""

    def build(path=UNIT, procs="", frozen="0", asked="0", top="sys/fs/cgroup"):
        put(f"{top}/cgroup.controllers", "cpu memory\n")
        put(f"{top}{path}/cgroup.procs", procs)
        put(f"{top}{path}/cgroup.events", f"populated {int(bool(procs))}\nfrozen {frozen}\n")
        put(f"{top}{path}/cgroup.freeze", f"{asked}\n")

    return build


@pytest.mark.parametrize(
    ("frozen", "asked", "state"),
    [
        ("0", "0", FreezerState.THAWED),
        ("0", "1", FreezerState.FREEZING),
        ("1", "1", FreezerState.FROZEN),
        ("1", "0", FreezerState.FROZEN),
        ("?", "0", FreezerState.UNKNOWN),
    ],
)
def test_state_needs_both_files(make, tmp_path, frozen, asked, state):
    """Asked for is not yet frozen; frozen by an ancestor is frozen."""
    make(frozen=frozen, asked=asked)
    assert cgroup.state(UNIT, tmp_path) is state


def test_state_of_what_is_not_there_is_unknown(tmp_path):
    """No hierarchy at all is UNKNOWN, not an error and not thawed."""
    assert cgroup.state(UNIT, tmp_path) is FreezerState.UNKNOWN


def test_freeze_returns_when_the_kernel_says_frozen(make, tmp_path):
    """freeze() writes the request and believes only cgroup.events."""
    make(frozen="1")
    cgroup.freeze(UNIT, 1, tmp_path)
    assert (tmp_path / f"sys/fs/cgroup{UNIT}/cgroup.freeze").read_text().startswith("1")


def test_freeze_times_out_with_the_path(make, tmp_path):
    """A task that cannot be frozen becomes ETIMEDOUT, not a hang."""
    make(frozen="0")
    with pytest.raises(KernelError) as caught:
        cgroup.freeze(UNIT, 0.05, tmp_path)
    assert caught.value.errno == errno.ETIMEDOUT


def test_members_are_recursive(make, tmp_path):
    """PIDs of sub-cgroups belong to the unit."""
    make(procs="30\n4\n")
    make(UNIT + "/worker", procs="7\n")
    make("/other.service", procs="99\n")
    assert cgroup.members(UNIT, tmp_path) == (4, 7, 30)


def test_a_sub_cgroup_that_is_removed_while_it_is_looked_at_has_no_members(make, tmp_path, monkeypatch):
    """Services make and remove them all the time; those that stay are found."""
    make(procs="30\n")
    make(UNIT + "/gone", procs="7\n")
    make(UNIT + "/worker", procs="8\n")
    scandir = os.scandir

    def removed(path):
        if str(path).endswith("/gone"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removed)
    found = cgroup.members(UNIT, tmp_path)
    assert found in ((8, 30), (7, 8, 30))


def test_members_of_a_missing_cgroup_is_an_error(make, tmp_path):
    """An absent unit is not an empty one."""
    make()
    with pytest.raises(KernelError):
        cgroup.members("/absent.service", tmp_path)


def test_the_unit_is_found_by_name_also_in_the_hybrid_layout(make, tmp_path):
    """systemd's hybrid layout has the v2 hierarchy one level deeper."""
    make(procs="1\n", top="sys/fs/cgroup/unified")
    assert cgroup.find_unit("nginx.service", tmp_path) == UNIT
    assert cgroup.find_unit("apache.service", tmp_path) is None
    assert cgroup.exists(UNIT, tmp_path)
    assert cgroup.populated(UNIT, tmp_path) is True
    assert cgroup.populated("/absent", tmp_path) is None

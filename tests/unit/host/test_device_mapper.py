"""dmsetup's words, and the order in which a table is exchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.errors import BadInputError, KupgradeError, ToolError
from kupgrade.host import device_mapper as dm
from kupgrade.host.device_mapper import Status, Target


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("0 1048576 snapshot 10504/131072 56\n", Status(Target.SNAPSHOT, 1048576, 10504, 131072, 56)),
        ("0 1048576 snapshot-merge 16/131072 16", Status(Target.MERGE, 1048576, 16, 131072, 16)),
        ("0 1048576 snapshot Invalid", Status(Target.SNAPSHOT, 1048576, failure="Invalid")),
        ("0 8 snapshot Overflow", Status(Target.SNAPSHOT, 8, failure="Overflow")),
        ("0 8 snapshot-merge Merge failed", Status(Target.MERGE, 8, failure="Merge failed")),
        ("0 8 snapshot-merge", Status(Target.MERGE, 8, failure="no figures")),
        ("0 1048576 linear \n", Status(Target.LINEAR, 1048576)),
        ("0 8 thin 1 2", Status(Target.OTHER, 8)),
    ],
)
def test_the_kernels_status_is_read(line: str, wanted: Status) -> None:
    """Figures where there are some; a broken store is told by the kernel's word, never by zeros."""
    found = dm.parse_status(line)
    assert found == wanted
    assert found.merged is (wanted.target is Target.MERGE and wanted.used == 16)


@pytest.mark.parametrize("line", ["", "Device does not exist.", "0 x snapshot 1/2 3", "0"])
def test_what_is_no_status_is_refused(line: str) -> None:
    """Words that are not a device's status are never taken for one."""
    with pytest.raises(BadInputError, match="status"):
        dm.parse_status(line)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dmsetup that notes its arguments and fails where a file tells it to."""
    tool = tmp_path / "bin/dmsetup"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n[ ! -e {tmp_path}/fail-$1 ] || exit 1\n'
        f'[ "$1" != status ] || cat {tmp_path}/status\n'
        f'[ "$1" != info ] || [ ! -e {tmp_path}/absent ] || {{ echo "Device does not exist."; exit 1; }}\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    return tmp_path


def noted(calls: Path) -> list[str]:
    return (calls / "calls").read_text().splitlines()


def test_a_table_is_exchanged_while_the_device_is_suspended(calls: Path) -> None:
    """Suspend freezes the file system first; resume brings the new table."""
    dm.reload("root", dm.table(Target.LINEAR, 8, Path("/dev/vda"), None))
    assert noted(calls) == ["suspend root", "reload root --table 0 8 linear /dev/vda 0", "resume root"]


def test_a_failed_exchange_lets_the_old_table_go_on(calls: Path) -> None:
    """Whatever the kernel says of the new table, nobody is left waiting at a suspended device."""
    (calls / "fail-reload").touch()
    with pytest.raises(ToolError):
        dm.reload("root", "0 8 linear /dev/vda 0")
    assert noted(calls)[-1] == "resume root"


def test_a_store_that_was_used_before_is_not_taken_over(calls: Path) -> None:
    """The header of an earlier snapshot is overwritten before the new one is made."""
    store = calls / "store"
    store.write_bytes(b"SnAp" * 4096)
    dm.snapshot("root", Path("/dev/vda"), store, 8)
    assert store.read_bytes()[:4096] == bytes(4096)
    assert noted(calls) == [f"create root --table 0 8 snapshot /dev/vda {store} P 8"]


def test_a_missing_device_is_no_status_and_nothing_to_remove(calls: Path) -> None:
    """dmsetup says so: None, and remove does nothing."""
    (calls / "absent").touch()
    assert dm.status("root") is None
    dm.remove("root")
    assert "remove --retry root" not in noted(calls)


def test_a_dmsetup_that_cannot_tell_is_no_missing_device(calls: Path) -> None:
    """Any other failure is an error: what is not known to be gone is not taken for gone."""
    (calls / "fail-info").touch()
    with pytest.raises(ToolError):
        dm.status("root")


@pytest.mark.parametrize("found", [None, Status(Target.SNAPSHOT, 8, failure="Invalid")])
def test_an_unusable_snapshot_is_an_error(found: Status | None) -> None:
    """Gone or invalid: told with what that means, never taken for merged."""
    with pytest.raises(KupgradeError, match="root"):
        dm.check_sound(found, "root")


def test_the_size_comes_from_sysfs(tmp_path: Path) -> None:
    """In sectors, whatever the device's own block size is."""
    (tmp_path / "sys/class/block/vda").mkdir(parents=True)
    (tmp_path / "sys/class/block/vda/size").write_text("1048576\n")
    assert dm.sectors_of(Path("/dev/vda"), tmp_path) == 1048576

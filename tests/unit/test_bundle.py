"""The support bundle: what is in it, and what never is. A host with secrets wherever one could have them."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kupgrade import bundle
from kupgrade.errors import BadInputError
from kupgrade.model.plan import Plan
from tests.unit.cli.conftest import COMMITTED, Host, write

SECRET = "hunter2Zq8xPlanted"
ADDRESS = "192.0.2.17"


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def full(tmp_path: Path, plan_with: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host after an upgrade, on which secrets lie around."""
    root = tmp_path / "root"
    root.mkdir()
    host = Host(root, plan_with(facts={"command line": f"root=/dev/vda1 ro own.key={SECRET}"}))
    journal = host.composed.state.begin(host.plan)
    write(journal, COMMITTED)
    journal.close()
    upgrade = host.composed.state.journal_path(host.plan.upgrade).parent
    (upgrade / "images").mkdir()
    (upgrade / "images/pages-1.img").write_text(SECRET)
    (root / "var/lib/kupgrade/images").mkdir(parents=True)
    (root / "var/lib/kupgrade/images/core-1.img").write_text(SECRET)
    (root / "var/lib/kupgrade/images/criu.log").write_text(SECRET)
    (root / "proc/500").mkdir(parents=True)
    (root / "proc/500/environ").write_text(f"API_KEY={SECRET}\0")
    (root / "proc/500/cmdline").write_text(f"demo\0--token\0{SECRET}\0")
    (root / "proc/cmdline").write_text(f"root=/dev/vda1 ro quiet vault={SECRET}\n")
    (root / "etc/kupgrade/policy.d").mkdir(parents=True)
    (root / "etc/os-release").write_text('PRETTY_NAME="Debian"\nVERSION_ID="13"\n')
    (root / "etc/kupgrade/policy.d/w.toml").write_text(
        f'# password: {SECRET}\n[[workload]]\nname = "demo"\nunit = "demo.service"\n'
        f'[workload.probe]\nkind = "command"\ncommand = ["/usr/bin/check", "--login", "{SECRET}"]\n'
    )
    tools = tmp_path / "bin"
    tools.mkdir()
    tool(
        tools,
        "dmesg",
        f"echo '[ 1.0] Command line: root=/dev/vda1 vault={SECRET}'; echo '[ 2.0] kexec_core: Starting'\n"
        f"echo '[ 1.1] Unknown kernel command line parameters \"nvme_load=YES vault={SECRET}\", will be passed'",
    )
    tool(
        tools,
        "journalctl",
        f"echo 'kupgrade[1]: hook gate.d/10-a: {SECRET}'; echo 'kupgrade[1]: freeze: done {ADDRESS}'",
    )
    tool(
        tools,
        "systemctl",
        f'case "$*" in *Environment*) echo "Environment=KEY={SECRET}";; *) echo "ActiveState=active";; esac',
    )
    for name in ("criu", "nft"):
        tool(tools, name, f"echo {name} 1.0")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("KUPGRADE_TEST_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    return host


def unpack(path: Path) -> dict[str, str]:
    with tarfile.open(path, "r:gz") as tar:
        members = tar.getmembers()
        assert all(member.isreg() and member.mode == 0o600 and ".." not in member.name for member in members)
        return {m.name.partition("/")[2]: tar.extractfile(m).read().decode() for m in members}  # type: ignore[union-attr]


def test_no_planted_secret_gets_in(full: Host, tmp_path: Path) -> None:
    """Images, environments, command lines, policies, logs, hooks: none of it, in any member."""
    result = full.call("report", "--out", str(tmp_path / "r.tar.gz"))
    assert result.exit_code == 0, result.output
    members = unpack(tmp_path / "r.tar.gz")
    assert [name for name, value in members.items() if SECRET in value] == []
    assert not any(part in name for name in members for part in ("img", "images", "criu.log", "environ"))
    assert "kexec_core: Starting" in members["kernel.log"]
    assert "freeze: done" in members["journal.log"]


def test_what_a_bug_report_needs_is_there(full: Host, tmp_path: Path) -> None:
    """Journal, plan, status, preflight, policy, versions, logs, units; the same list as --json tells."""
    lines, code = full.lines("report", "--out", str(tmp_path / "r.tar.gz"))
    members = unpack(tmp_path / "r.tar.gz")
    assert code == 0
    assert lines[0]["members"] == {name: len(value.encode()) for name, value in members.items()}
    upgrade = f"upgrades/{full.plan.upgrade}"
    wanted = {
        "versions.json", "status.json", "preflight.json", "history.json", "policy.json", "kernel.log", "journal.log",
        "units.txt", "policy/etc_kupgrade_policy.d_w.toml", f"{upgrade}/journal.json", f"{upgrade}/plan.json",
        f"{upgrade}/timeline.json",
    }  # fmt: skip
    assert wanted == set(members)
    kinds = [record["kind"] for record in json.loads(members[f"{upgrade}/journal.json"])]
    assert kinds[0] == "planned"
    assert json.loads(members["history.json"])[0]["outcome"] == "committed"
    assert json.loads(members["versions.json"])["kernel cmdline"] == "root=/dev/vda1 ro quiet vault=[redacted]"


def test_it_is_roots_alone_and_replaces_nothing(full: Host, tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; a file that is there stays, a link is not followed."""
    path = tmp_path / "r.tar.gz"
    before_it = os.umask(0)
    try:
        assert full.call("report", "--out", str(path)).exit_code == 0
    finally:
        os.umask(before_it)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert full.call("report", "--out", str(path)).exit_code == 3
    assert path.read_bytes() == before
    (tmp_path / "link.tar.gz").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInputError):
        bundle.write(tmp_path / "link.tar.gz", bundle.Bundle(bundle.Wishes()))
    assert not (tmp_path / "elsewhere").exists()


def test_addresses_are_left_out_when_asked(full: Host, tmp_path: Path) -> None:
    """And are there otherwise: who speaks to whom is half of a network problem."""
    full.call("report", "--out", str(tmp_path / "with.tar.gz"))
    full.call("report", "--redact", "--out", str(tmp_path / "without.tar.gz"))
    assert ADDRESS in unpack(tmp_path / "with.tar.gz")["journal.log"]
    assert not any(ADDRESS in value for value in unpack(tmp_path / "without.tar.gz").values())


def test_what_cannot_be_had_is_said_and_the_rest_is_there(full: Host, tmp_path: Path) -> None:
    """A damaged policy, a tool that is missing: a member says why, without secrets."""
    (full.root / "etc/kupgrade/policy.d/w.toml").write_text(f'password = "{SECRET}"\n')
    (tmp_path / "bin/journalctl").unlink()

    def fails(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    full.change(probe=fails)
    old = os.environ["PATH"]
    os.environ["PATH"] = str(tmp_path / "bin")
    try:
        assert full.call("report", "--out", str(tmp_path / "r.tar.gz")).exit_code == 0
    finally:
        os.environ["PATH"] = old
    members = unpack(tmp_path / "r.tar.gz")
    assert "not usable" in members["preflight.json.missing"] + members["policy.json.missing"]
    assert "journalctl" in members["journal.log.missing"]
    assert "versions.json" in members
    assert not any(SECRET in value for value in members.values())


def test_a_dry_run_lists_and_writes_nothing(full: Host, tmp_path: Path) -> None:
    """-n, as every verb."""
    before = sorted(tmp_path.iterdir())
    result = full.call("report", "-n")
    assert result.exit_code == 0
    assert "versions.json" in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_nested_beyond_measure_is_left_out_and_the_rest_is_there(full: Host, tmp_path: Path) -> None:
    """A report about a damaged state directory is made all the same."""
    plan = full.composed.state.journal_path(full.plan.upgrade).with_name("plan.json")
    plan.write_text("[" * 100_000)
    result = full.call("report", "--out", str(tmp_path / "r.tar.gz"))
    assert result.exit_code == 0, result.output
    members = unpack(tmp_path / "r.tar.gz")
    assert f"upgrades/{full.plan.upgrade}/plan.json.missing" in members and "journal.log" in members

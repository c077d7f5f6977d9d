"""The scripts of the rpm package, taken out of its spec file and run below a directory."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
SPEC = (PACKAGING / "rpm/kupgrade.spec").read_text()
INSTALLED = sorted(path.name for path in (PACKAGING / "systemd").iterdir() if "\n[Install]" in path.read_text())
WATCHING = [name for name in INSTALLED if name.endswith((".path", ".timer"))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with systemd, whose tools write down how they are called."""
    for name in ("usr/bin", "run/systemd/system", "var/lib/kupgrade"):
        (tmp_path / name).mkdir(parents=True)
    for tool in ("systemctl", "kupgrade"):
        path = tmp_path / "usr/bin" / tool
        path.write_text(f'#!/bin/sh\necho {tool} "$@" >> {tmp_path}/calls\n')
        path.chmod(0o755)
    return tmp_path


def run(root: Path, section: str, count: int) -> list[str]:
    """What a script calls, which rpm starts with the number of versions that there will be."""
    found = re.search(rf"^%{section}\n(.*?)^%(?!%)", SPEC, re.DOTALL | re.MULTILINE)
    assert found is not None
    text = re.sub(r"(?<![\w}$/.])/(run|var|usr)/", rf"{root}/\1/", found[1])
    env = {"PATH": f"{root}/usr/bin:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", text, "rpm", str(count)], env=env, timeout=30, check=False)
    assert done.returncode == 0
    return (root / "calls").read_text().splitlines() if (root / "calls").exists() else []


def test_an_installation_enables_every_unit_that_can_be(root: Path) -> None:
    """And starts those that watch for kernels. Not by presets: they name nothing of ours, the lock would be missing."""
    calls = run(root, "post", 1)
    enabled = {word for call in calls if " enable " in f"{call} " for word in call.split()}
    started = {word for call in calls if " start " in f"{call} " for word in call.split()}
    assert set(INSTALLED) <= enabled and set(WATCHING) <= started
    assert not {"kupgrade-lock.service", "kupgrade-resume.service"} & started


def test_an_upgrade_of_the_package_changes_nothing(root: Path) -> None:
    """What an operator disabled stays so, what is open goes on."""
    assert run(root, "post", 2) == [] and run(root, "preun", 1) == []


def test_a_removal_disables_them_all(root: Path) -> None:
    """No link to a unit that is gone."""
    disabled = {word for call in run(root, "preun", 0) if " disable " in call for word in call.split()}
    assert set(INSTALLED) <= disabled


def test_the_keeper_of_an_instance_that_cannot_be_stopped_goes_on(root: Path) -> None:
    """Without its guard a reset that the instance asks for could reset the machine."""
    instance = root / "var/lib/kupgrade/instances/rt"
    instance.mkdir(parents=True)
    (instance / "current").symlink_to("journals/x")
    calls = run(root, "preun", 0)
    assert "kupgrade instance stop rt" in calls
    assert not [call for call in calls if call.startswith("systemctl stop") and "kupgrade-*" in call]

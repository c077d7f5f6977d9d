"""What the packages install, name and depend on is what is in the tree."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from kupgrade import __version__
from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import tree

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGING = ROOT / "packaging"
# What of packaging/ is no part of any host.
MAKING = ("debian", "man", "rpm", "bootstrap", "build-deb", "build-rpm", "install-files", "manifest")


def shipped() -> set[str]:
    """Everything that is for a host and no part of the Python package; what explains the tree stays in it."""
    tops = [path for path in PACKAGING.iterdir() if path.name not in MAKING]
    found = [path for top in (*tops, ROOT / "policies", ROOT / "hooks") for path in top.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts and path.name != "README.md"
    }


def test_nothing_is_forgotten() -> None:
    """A unit, policy, completion or hook that packaging/manifest does not name fails here."""
    lines = (PACKAGING / "manifest").read_text().splitlines()
    patterns = [line.split()[0].lstrip("?") for line in lines if line and not line.startswith("#")]
    named = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    assert shipped() - named == set()


def test_the_wheel_has_it_too() -> None:
    """What a rehearsal installs is in the wheel, laid out as in the tree."""
    found = {"packaging/manifest"}
    for target, patterns in PROJECT["tool"]["setuptools"]["data-files"].items():
        files = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
        if target.startswith("share/kupgrade/"):
            assert {str(Path(file).parent) for file in files} <= {target.removeprefix("share/kupgrade/")}
            found |= files
    assert found == shipped() | {"packaging/manifest"}


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_both_readers_of_the_manifest_agree(kind: str, tmp_path: Path) -> None:
    """packaging/install-files, for packages, and the rehearsal's reader put the same files in the same places."""
    subprocess.run([PACKAGING / "install-files", kind, tmp_path, "usr/share/zsh=usr/share/elsewhere"], check=True)
    files = (path for path in tmp_path.rglob("*") if path.is_file())
    installed = {(str(path.relative_to(tmp_path)), path.read_bytes(), path.stat().st_mode & 0o777) for path in files}
    expected = {(target, path.read_bytes(), mode) for path, target, mode in tree.packaged(kind)}
    assert installed == {(name.replace("share/zsh", "share/elsewhere"), text, mode) for name, text, mode in expected}


def test_an_incomplete_tree_is_told(tmp_path: Path) -> None:
    """A manifest's line without its file stops the packaging; a rehearsal without units does not begin."""
    (tmp_path / "packaging").mkdir()
    for name in ("manifest", "install-files"):
        (tmp_path / "packaging" / name).write_bytes((PACKAGING / name).read_bytes())
    done = subprocess.run(
        ["sh", tmp_path / "packaging/install-files", "deb", tmp_path / "root"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "matches nothing" in done.stderr
    with pytest.raises(KupgradeError, match="units are not there"):
        tree.source((tmp_path / "nowhere",))


def test_one_version_everywhere() -> None:
    """Package, wheel, Debian, rpm and DKMS have the same."""
    changelog = re.match(r"kupgrade \((.*?)\)", (PACKAGING / "debian/changelog").read_text())
    spec = re.search(r"^Version:\s+(\S+)$", (PACKAGING / "rpm/kupgrade.spec").read_text(), re.MULTILINE)
    module = re.search(r'PACKAGE_VERSION="(.*?)"', (ROOT / "kupgrade/kmod/dkms.conf").read_text())
    assert changelog is not None
    assert spec is not None
    assert module is not None
    assert {changelog[1], spec[1], module[1], PROJECT["project"]["version"]} == {__version__}


def test_every_dependency_is_asked_for() -> None:
    """Whatever pyproject.toml needs to run, the packages build and run with."""
    control, spec = (PACKAGING / "debian/control").read_text(), (PACKAGING / "rpm/kupgrade.spec").read_text()
    for line in PROJECT["project"]["dependencies"]:
        name = re.split(r"[<>=,;\[ ]", line)[0]
        assert f"python3-{name}," in control  # its Depends line follows from the wheel's by dh-python
        assert f"python3-{name}\n" in spec


def test_what_is_for_rpm_is_in_the_spec() -> None:
    """The triggers that note kernels stand in the spec file as the hooks have them."""
    triggers = ROOT / "hooks/rpm/kupgrade.triggers"
    if not triggers.exists():
        return
    lines = [line for line in triggers.read_text().splitlines() if line and not line.startswith("#")]
    spec = (PACKAGING / "rpm/kupgrade.spec").read_text()
    assert "\n".join(lines).replace("\n%", "\n\n%") in spec

"""Debian's maintainer scripts, run by dash below a directory: the rest of dpkg's work is done in tests/packaging."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEBIAN = Path(__file__).parents[2] / "packaging/debian"
OWN = "usr/share/kupgrade/etc/apt/apt.conf.d/52kupgrade"
LINK = "etc/apt/apt.conf.d/52kupgrade"
SHELL = "dash" if shutil.which("dash") else "sh"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host on which the package was just installed, with its link in place."""
    for name in ("run", "var/lib/kupgrade", "var/cache/kupgrade", "etc/apt/apt.conf.d", str(Path(OWN).parent)):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / OWN).write_text("x\n")
    script(tmp_path, "preinst", "install")
    script(tmp_path, "postinst", "configure")
    assert (tmp_path / LINK).is_symlink() and list((tmp_path / "run").iterdir()) == []
    return tmp_path


def script(root: Path, name: str, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A script with every absolute path below `root`; without kupgrade itself nothing is open."""
    text = (DEBIAN / f"kupgrade.{name}").read_text()
    text = re.sub(r"(?<![\w}$/.])/(run|var|etc|usr/share|sys)/", rf"{root}/\1/", text)
    argv = [SHELL, "-c", f"{before}\n{text}", name, *words]
    if before:
        argv = ["unshare", "--mount", *argv]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount")
@pytest.mark.parametrize("place", ["var/lib/kupgrade", "var/lib/kupgrade/images", "var/cache/kupgrade"])
def test_a_purge_does_not_fail_for_a_mount(root: Path, place: str) -> None:
    """A file system of its own for state, images or the cache is emptied where it is ours, stays, and that is said."""
    (root / place).mkdir(exist_ok=True)
    (root / "etc/kupgrade").mkdir()
    mount = f"mount -t tmpfs none {root / place} && echo x > {root / place}/pages-1.img || exit 9"
    done = script(root, "postrm", "purge", before=f"{mount}\ntrap 'find {root / place} >&2' EXIT")
    assert done.returncode == 0, done.stderr
    assert f"mounted at {root / place} " in done.stderr and "pages-1.img" not in done.stderr
    assert not (root / "etc/kupgrade").exists()


def test_a_removal_that_is_called_off_leaves_the_links(root: Path) -> None:
    """dpkg calls prerm remove, then postinst abort-remove when another package's script failed."""
    assert script(root, "prerm", "remove", "in-favour", "other", "1").returncode == 0
    assert script(root, "postinst", "abort-remove", "in-favour", "other", "1").returncode == 0
    assert (root / LINK).is_symlink()


def test_links_go_with_the_package(root: Path) -> None:
    """And only those that lead to the package's files."""
    own = root / "etc/apt/apt.conf.d/53own"
    own.symlink_to("/dev/null")
    script(root, "prerm", "remove")
    shutil.rmtree(root / "usr/share/kupgrade")
    done = script(root, "postrm", "remove")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (root / LINK).is_symlink() and own.is_symlink()

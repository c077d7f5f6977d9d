"""The mirror out of apt's own words, and kernels out of local packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kupgrade.errors import UsageError
from kupgrade.rehearsal.suites import choose_mirror, local_kernel


def test_the_main_archive_is_chosen_among_all_sources() -> None:
    """Security archives, other vendors and translations are not the mirror."""
    targets = """Translations http://mirror.example/debian Debian stable
Packages https://vendor.example/apt vendor main
Packages http://mirror.example/debian-security Debian stable-security
Packages http://mirror.example/debian/ Debian stable
Packages http://mirror.example/debian/ Debian stable-updates
"""
    assert choose_mirror(targets) == "http://mirror.example/debian"
    assert choose_mirror("Packages https://vendor.example/apt vendor main\n") is None


def make_deb(directory: Path, name: str, version: str) -> None:
    control = directory / name / "DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x <x@example>\nDescription: x\n"
    )
    subprocess.run(
        ["dpkg-deb", "-b", directory / name, directory / f"{name}_{version}.deb"], check=True, capture_output=True
    )


def test_a_directory_of_packages_is_a_kernel_of_any_flavour(tmp_path: Path) -> None:
    """Self-built packages need no flavour; the newest of the directory is taken, with the files it lies in."""
    make_deb(tmp_path, "linux-image-7.4.0", "7.4.0-1")
    make_deb(tmp_path, "linux-image-7.4.1", "7.4.1-1")
    kernel = local_kernel(tmp_path)
    assert kernel.release == "7.4.1"
    assert kernel.packages[0].file == str(tmp_path / "linux-image-7.4.1_7.4.1-1.deb")
    assert len(kernel.packages[0].digest) == 64


def test_a_path_without_a_kernel_is_a_usage_error(tmp_path: Path) -> None:
    """An empty directory, or another package, is told at once."""
    with pytest.raises(UsageError):
        local_kernel(tmp_path)
    make_deb(tmp_path, "bash", "5-1")
    with pytest.raises(UsageError):
        local_kernel(tmp_path / "bash_5-1.deb")

"""Debian versions, and which packages make a kernel."""

from __future__ import annotations

import itertools

import pytest

from kupgrade.rehearsal.packages import Package, Version, choose, kernels, parse_packages

ORDERED = (
    "1.0~rc1-1",
    "1.0-1",
    "1.0-1+b1",
    "1.0a-1",
    "1.0+deb13-1",
    "1.0.1-1",
    "1.2-1",
    "1.10-1~bpo13+1",
    "1.10-1",
    "7.3~rc7-1~exp1",
    "7.3.4-1~bpo13+1",
    "1:0.1-1",
)
INDEX = """Package: linux-image-6.18.15+deb13-cloud-amd64
Version: 6.18.15-1~bpo13+1
Depends: kmod, linux-base (>= 4.12~)
SHA256: aa

Package: linux-image-7.2.12+deb13-cloud-amd64
Version: 7.2.12-1~bpo13+1
Depends: linux-binary-7.2.12+deb13-cloud-amd64 (= 7.2.12-1~bpo13+1)

Package: linux-binary-7.2.12+deb13-cloud-amd64
Version: 7.2.12-1~bpo13+1

Package: linux-modules-7.2.12+deb13-cloud-amd64
Version: 7.2.12-1~bpo13+1

Package: linux-base-7.2.12+deb13-cloud-amd64
Version: 7.2.12-1~bpo13+1

Package: linux-binary-unsigned-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-modules-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-binary-unsigned-7.4.1+deb13-cloud-amd64
Version: 7.4.1-1~bpo13+1

Package: linux-image-6.18.15+deb13-amd64
Version: 6.18.15-1~bpo13+1

Package: linux-image-6.18.15+deb13-cloud-amd64-dbg
Version: 6.18.15-1~bpo13+1

Package: zsh
Version: 9
"""


@pytest.mark.parametrize(("older", "newer"), list(itertools.pairwise(ORDERED)))
def test_versions_are_ordered_as_dpkg_orders_them(older: str, newer: str) -> None:
    """A tilde sorts before the end, letters before other signs, numbers as numbers, epochs first."""
    assert Version(older) < Version(newer)
    assert not Version(newer) < Version(older)


def test_leading_zeros_do_not_make_another_version() -> None:
    """1.02 and 1.2 are equal, as for dpkg."""
    assert Version("1.02-1") == Version("1.2-1")


def found() -> dict[str, tuple[str, ...]]:
    packages = parse_packages(INDEX, "linux-")
    return {k.release: tuple(p.name for p in k.packages) for k in kernels(packages, "trixie-backports")}


def test_a_kernel_of_one_package_is_found() -> None:
    """Up to 6.18 linux-image holds everything."""
    assert found()["6.18.15+deb13-cloud-amd64"] == ("linux-image-6.18.15+deb13-cloud-amd64",)


def test_a_kernel_in_parts_is_found_whole() -> None:
    """From 7.x on binary, modules and base are taken, not the empty shell linux-image."""
    names = ("linux-binary", "linux-modules", "linux-base")
    assert found()["7.2.12+deb13-cloud-amd64"] == tuple(f"{name}-7.2.12+deb13-cloud-amd64" for name in names)


def test_an_unsigned_kernel_serves_until_the_signed_one_is_out() -> None:
    """linux-binary-unsigned with its modules is a kernel; without modules it is none."""
    assert found()["7.3.4+deb13-cloud-amd64"][0] == "linux-binary-unsigned-7.3.4+deb13-cloud-amd64"
    assert "7.4.1+deb13-cloud-amd64" not in found()


def test_other_flavours_and_debug_packages_are_left_out() -> None:
    """Only the flavour asked for, only what boots."""
    assert not [release for release in found() if "cloud" not in release or release.endswith("-dbg")]


@pytest.mark.parametrize(
    ("wanted", "release"),
    [
        ("trixie-backports", "7.3.4+deb13-cloud-amd64"),
        ("6.18", "6.18.15+deb13-cloud-amd64"),
        ("7.2.12", "7.2.12+deb13-cloud-amd64"),
        ("7.2.12-1~bpo13+1", "7.2.12+deb13-cloud-amd64"),
        ("7.3.4+deb13-cloud-amd64", "7.3.4+deb13-cloud-amd64"),
        ("7", "7.3.4+deb13-cloud-amd64"),
        ("6.1", None),
        ("sid", None),
    ],
)
def test_a_kernel_is_chosen_by_suite_release_version_or_prefix(wanted: str, release: str | None) -> None:
    """The newest match counts; a prefix ends where a component ends."""
    chosen = choose(wanted, kernels(parse_packages(INDEX), "trixie-backports"))
    assert (chosen.release if chosen else None) == release


def test_a_newer_build_in_the_same_index_wins() -> None:
    """Of two versions of one package the newer is taken."""
    twice = [Package("linux-image-1-cloud-amd64", version, "") for version in ("1-2", "1-10")]
    assert [kernel.version for kernel in kernels(twice, "sid")] == ["1-10"]

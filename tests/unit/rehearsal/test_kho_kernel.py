"""Kernels built for the lab: their names, the source each one stands for, what they must have, where things lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kupgrade.errors import KupgradeError, UsageError
from kupgrade.rehearsal import kho_kernel, options, virtual_host
from kupgrade.rehearsal.cache import Cache
from kupgrade.rehearsal.kho_kernel import OLD, REQUIRED, arrange, choose, content, missing, pair, release, sources
from kupgrade.rehearsal.options import Options
from kupgrade.rehearsal.packages import KernelPackages, Package, parse_packages
from kupgrade.rehearsal.suites import Archive

INDICES = {
    "trixie": "Package: linux-source\nVersion: 6.12.107-1\n\nPackage: linux-source-6.12\nVersion: 6.12.107-1\n",
    "trixie-backports": """Package: linux-source
Version: 7.2.12-1~bpo13+1

Package: linux-source-6.18
Version: 6.18.15-1~bpo13+1

Package: linux-source-7.2
Version: 7.2.6-1~bpo13+1
SHA256: aa

Package: linux-source-7.2
Version: 7.2.12-1~bpo13+1
SHA256: ab

Package: linux-source-7.3
Version: 7.3.4-1~bpo13+1
SHA256: ac

Package: linux-image-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
""",
    "sid": "Package: linux-source-7.2\nVersion: 7.2.13-1\nSHA256: ad\n",
    "experimental": "Package: linux-source-7.3\nVersion: 7.3~rc7-1~exp1\nSHA256: ae\n",
}
CANDIDATES = [each for suite, text in INDICES.items() for each in sources(parse_packages(text, "linux-"), suite)]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("7.2.13-1", "7.2.13-kho"),
        ("7.3.4-1~bpo13+1", "7.3.4-kho"),
        ("7.3~rc7-1~exp1", "7.3.0-rc7-kho"),
        ("7.4-1", "7.4.0-kho"),
        ("1:7.4.1-2", "7.4.1-kho"),
    ],
)
def test_a_release_is_named_as_kbuild_will_name_it(version: str, expected: str) -> None:
    """The package's version tells the release before anything is unpacked."""
    assert release(version) == expected


def test_only_sources_that_can_have_luo_are_candidates() -> None:
    """Neither metapackages, images, nor kernels before 6.19."""
    assert sorted(each.version for each in CANDIDATES) == sorted(
        ["7.2.6-1~bpo13+1", "7.2.12-1~bpo13+1", "7.3.4-1~bpo13+1", "7.2.13-1", "7.3~rc7-1~exp1"]
    )
    assert all(kho_kernel.is_source(each) for each in CANDIDATES)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("khokernel", "7.3.4-kho"),
        ("khokernel-7", "7.3.4-kho"),
        ("khokernel-7.2", "7.2.13-kho"),
        ("khokernel-7.2.6", "7.2.6-kho"),
        ("khokernel-7.2.12-1~bpo13+1", "7.2.12-kho"),
        ("khokernel-7.3~rc7", "7.3.0-rc7-kho"),
        ("khokernel-trixie-backports", "7.3.4-kho"),
        ("khokernel-sid", "7.2.13-kho"),
        ("khokernel-old", "7.2.13-kho"),
    ],
)
def test_a_name_stands_for_the_newest_source_it_fits(wanted: str, expected: str) -> None:
    """By prefix of release or version, as for packaged kernels, or by suite."""
    assert kho_kernel.is_name(wanted)
    assert choose(wanted, CANDIDATES).release == expected


def test_what_no_source_fits_is_a_usage_error_that_names_those_there_are() -> None:
    """A component is not half matched: 7.2.1 is not 7.2.13."""
    for wanted in ("khokernel-7.2.1", "khokernel-6.18", "khokernel-9"):
        with pytest.raises(UsageError, match=r"7\.2\.13-1"):
            choose(wanted, CANDIDATES)


def test_the_older_kernel_of_a_pair_is_another_one() -> None:
    """Of the oldest series the newest that is older than the new one; without any it is told."""
    for wanted, expected in (("khokernel", "7.2.13"), ("khokernel-7.2", "7.2.12"), ("khokernel-7.2.12", "7.2.6")):
        assert choose(OLD, CANDIDATES, choose(wanted, CANDIDATES)).release == f"{expected}-kho"
    with pytest.raises(UsageError):
        choose(OLD, CANDIDATES, choose("khokernel-7.2.6", CANDIDATES))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (None, (), ("trixie", ("trixie-backports",))),
        (None, ("6.18",), ("trixie", ("6.18",))),
        ("6.18", (), ("6.18", ("trixie-backports",))),
        (None, ("khokernel",), (OLD, ("khokernel",))),
        ("khokernel-7.2", (), ("khokernel-7.2", ("khokernel",))),
        ("trixie", ("khokernel", "sid"), ("trixie", ("khokernel", "sid"))),
    ],
)
def test_what_is_not_named_goes_with_what_is(
    old: str | None, new: tuple[str, ...], expected: tuple[str, tuple[str, ...]]
) -> None:
    """Only a kernel with handover makes the other one such a kernel."""
    assert pair(old, new) == expected


def test_other_names_are_none_of_these() -> None:
    """Suites, releases and paths stay what they were."""
    assert not any(kho_kernel.is_name(each) for each in ("trixie", "7.2", "./khokernel", "khokernels"))
    package = KernelPackages("7.3.4", "7.3.4-1", "sid", (Package("linux-image-7.3.4", "7.3.4-1", ""),))
    assert not kho_kernel.is_source(package)


def fitting() -> str:
    return "".join(f"{name}=y\n" for name in REQUIRED) + "# CONFIG_MODULE_SIG is not set\n"


def test_a_configuration_that_lacks_an_option_is_named_with_it() -> None:
    """Turned off, absent, a module, or turned on against our wish: each is told, and nothing else."""
    assert missing(fitting()) == []
    lacking = fitting().replace("CONFIG_LIVEUPDATE=y\n", "").replace("CONFIG_EXT4_FS=y", "CONFIG_EXT4_FS=m")
    assert missing(lacking) == ["CONFIG_EXT4_FS=y", "CONFIG_LIVEUPDATE=y"]
    assert missing(fitting() + "CONFIG_DEBUG_INFO_BTF=y\n") == ["CONFIG_DEBUG_INFO_BTF=n"]


def test_the_fragment_asks_for_all_that_is_required() -> None:
    """What Kconfig would drop is found before minutes of compiling, what nobody asked for at once."""
    asked = kho_kernel.FRAGMENT.read_text().splitlines()
    assert not [name for name in REQUIRED if f"{name}=y" not in asked]
    assert len(asked) == len({line for line in asked if line}) + asked.count("")


def test_another_option_source_or_recipe_is_another_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache never hands out a kernel built from something else; the same content has the same name."""
    kernel = CANDIDATES[0]
    fragment = tmp_path / "fragment"
    fragment.write_text(kho_kernel.FRAGMENT.read_text())
    first = content(kernel)
    assert content(kernel, fragment) == first
    fragment.write_text(fragment.read_text() + "CONFIG_BRIDGE=y\n")
    other = replace(kernel, packages=(replace(kernel.packages[0], digest="other"),))
    names = [first, content(kernel, fragment), content(other), content(CANDIDATES[1])]
    monkeypatch.setattr(kho_kernel, "RECIPE", kho_kernel.RECIPE + 1)
    names.append(content(kernel))
    assert len(set(names)) == len(names)


def built_tree(directory: Path, named: str) -> Path:
    for name, text in {
        "include/config/kernel.release": f"{named}\n",
        "arch/x86/boot/bzImage": "image",
        ".config": "CONFIG_X=y\n",
        "System.map": "map",
        "modules.builtin": "kernel/fs/ext4/ext4.ko\n",
        "modules.builtin.modinfo": "ext4.license=GPL\0",
        "vmlinux": "large",
    }.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def test_what_was_built_lies_where_debian_puts_it(tmp_path: Path) -> None:
    """Image, configuration and symbols under the release's name; an index of drivers, and no module."""
    arrange(built_tree(tmp_path / "linux", "7.3.4-kho"), "7.3.4-kho", tmp_path / "layer")
    layer = tmp_path / "layer"
    files = {str(path.relative_to(layer)): path.read_text() for path in layer.rglob("*") if path.is_file()}
    modules = "usr/lib/modules/7.3.4-kho"
    assert files == {
        "boot/vmlinuz-7.3.4-kho": "image",
        "boot/config-7.3.4-kho": "CONFIG_X=y\n",
        "boot/System.map-7.3.4-kho": "map",
        f"{modules}/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
        f"{modules}/modules.builtin.modinfo": "ext4.license=GPL\0",
        f"{modules}/modules.order": "",
    }


def test_a_tree_of_another_release_is_refused(tmp_path: Path) -> None:
    """A kernel that calls itself otherwise would never be found by its release."""
    with pytest.raises(KupgradeError, match=r"7\.3\.4\+-kho"):
        arrange(built_tree(tmp_path / "linux", "7.3.4+-kho"), "7.3.4-kho", tmp_path / "layer")
    assert not (tmp_path / "layer").exists()


def test_the_command_line_turns_handover_on_where_a_kernel_has_it() -> None:
    """Both kernels of a crossing share one line; hosts of packaged kernels keep theirs."""
    for wanted in (Options(old="khokernel-7.2"), Options(new="khokernel"), Options(further=("khokernel",))):
        assert {"kho=on", "liveupdate=on"} <= set(options.kernel_line(wanted).split())
    large = options.kernel_line(Options(old="khokernel", memory=1024))
    assert "kho=on" in large
    assert "memmap=1792M!4G" in large
    assert "kho" not in options.kernel_line(Options())


def test_no_kernel_of_this_kind_stands_beside_another(tmp_path: Path) -> None:
    """The engine spawn needs a module, and there are no headers to build it with: told before anything is fetched."""
    archive = Archive(Cache(tmp_path), "http://mirror.invalid/debian")
    with pytest.raises(UsageError, match="engine kexec"):
        virtual_host._choose(archive, "trixie", ["khokernel"], kspawn=True)
    assert not list(tmp_path.iterdir())

from __future__ import annotations

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import kernels
from kupgrade.host.kernels import Presence
from kupgrade.model.kernel import KernelRelease

R = KernelRelease("6.12.107+deb13-amd64")


@pytest.mark.parametrize(
    ("kernel", "initrd"),
    [
        (f"boot/vmlinuz-{R}", f"boot/initrd.img-{R}"),
        (f"boot/vmlinuz-{R}", f"boot/initramfs-{R}.img"),
        (f"usr/lib/modules/{R}/vmlinuz", None),
        (f"usr/lib/modules/{R}/vmlinuz.unsigned", None),
        (f"boot/0123abcd/{R}/linux", f"boot/0123abcd/{R}/initrd"),
    ],
)
def test_a_kernel_is_found_in_every_layout(put, tmp_path, kernel, initrd):
    """Debian, Fedora, Debian since Linux 7, Boot Loader Specification."""
    put(kernel)
    if initrd:
        put(initrd)
    found = kernels.locate(R, tmp_path)
    assert found == kernels.Installed(R, tmp_path / kernel, tmp_path / initrd if initrd else None)
    assert kernels.installed(tmp_path) == (found,)


def test_installed_kernels_are_sorted_by_release(put, tmp_path):
    """Oldest first, numbers as numbers, stray files left out."""
    for name in ("6.9.1", "6.12.1", "6.12.1-rc2", "a b", "6.12~rc1"):
        put(f"boot/vmlinuz-{name}")
    put("usr/lib/modules/7.0/vmlinuz")
    found = [each.release.text for each in kernels.installed(tmp_path)]
    assert found == ["6.9.1", "6.12~rc1", "6.12.1-rc2", "6.12.1", "7.0"]


def test_a_release_that_is_not_installed_is_refused(tmp_path):
    """With the places where it was looked for."""
    with pytest.raises(BadInputError, match="is not installed"):
        kernels.locate(R, tmp_path)


def test_the_configuration_beside_is_read(put, tmp_path):
    """From /boot, or from the modules directory (Debian since Linux 7)."""
    assert kernels.config_beside(R, tmp_path) is None
    put(f"usr/lib/modules/{R}/config", "CONFIG_B=m\n")
    assert kernels.config_beside(R, tmp_path) == {"CONFIG_B": "m"}
    put(f"boot/config-{R}", "CONFIG_A=y\n")
    assert kernels.config_beside(R, tmp_path) == {"CONFIG_A": "y"}


def test_modules_are_looked_up_in_index_and_directory(put, tmp_path):
    """Built in, present, missing from the index, in the index without a file."""
    top = f"usr/lib/modules/{R}/"
    put(top + "modules.builtin", "kernel/fs/ext4/ext4.ko\n")
    put(top + "modules.dep", "kernel/net/unix-diag.ko.xz: kernel/a.ko.xz\nkernel/gone.ko:\n")
    put(top + "kernel/net/unix-diag.ko.xz")
    assert kernels.modules_present(R, ["ext4", "unix_diag", "nf_tables", "gone"], tmp_path) == {
        "ext4": Presence.BUILTIN,
        "unix_diag": Presence.MODULE,
        "nf_tables": Presence.MISSING,
        "gone": Presence.MISSING,
    }


def test_before_depmod_the_build_order_serves_as_index(put, tmp_path):
    """modules.order names files before they were compressed."""
    put(f"lib/modules/{R}/modules.order", "kernel/net/unix_diag.ko\n")
    put(f"lib/modules/{R}/kernel/net/unix_diag.ko.zst")
    assert kernels.modules_present(R, ["unix-diag"], tmp_path) == {"unix-diag": Presence.MODULE}


def test_without_modules_nothing_is_known(tmp_path):
    """A missing directory is UNKNOWN, not MISSING: the driver may be built in."""
    assert kernels.modules_present(R, ["ext4"], tmp_path) == {"ext4": Presence.UNKNOWN}


def test_a_module_counts_only_with_its_file():
    """=m meets a need when the module is there; y always; n and absence never."""
    config = {need.option: "y" for need in kernels.NEEDS}
    assert kernels.config_needs(config, lambda _: False) == ()
    config |= {"CONFIG_UNIX_DIAG": "m", "CONFIG_INET_DIAG": "m", "CONFIG_NF_TABLES": "n"}
    del config["CONFIG_MEM_SOFT_DIRTY"]
    missing = kernels.config_needs(config, lambda module: module == "unix_diag")
    assert [(need.option, need.required) for need in missing] == [
        ("CONFIG_INET_DIAG", True),
        ("CONFIG_NF_TABLES", True),
        ("CONFIG_MEM_SOFT_DIRTY", False),
    ]


def test_a_link_that_leads_nowhere_is_no_installed_kernel(put, tmp_path):
    """What a removed package left behind does not hide the kernels that are there."""
    put(f"boot/vmlinuz-{R}")
    (tmp_path / "boot/vmlinuz-6.99.0").symlink_to("vmlinuz-gone")
    (tmp_path / "boot/vmlinuz-6.98.0").symlink_to("vmlinuz-6.98.0")
    assert [each.release for each in kernels.installed(tmp_path)] == [R]


def test_a_directory_is_no_installed_kernel(put, tmp_path):
    """Neither as image nor as initrd: what is found is a file."""
    put(f"boot/vmlinuz-{R}")
    put("boot/vmlinuz-6.99.0/file")
    put(f"boot/initrd.img-{R}/file")
    assert kernels.installed(tmp_path) == (kernels.Installed(R, tmp_path / f"boot/vmlinuz-{R}", None),)


def test_what_an_installation_left_beside_is_no_kernel(put, tmp_path):
    """make install keeps the one before as .old, dpkg and rpm have theirs: none is newer than the kernel itself."""
    put("boot/vmlinuz-6.9.1")
    for suffix in (".old", ".bak", ".dpkg-new", ".dpkg-tmp", ".rpmsave", ".rpmnew", "~"):
        put(f"boot/vmlinuz-6.9.1{suffix}")
    assert [each.release.text for each in kernels.installed(tmp_path)] == ["6.9.1"]

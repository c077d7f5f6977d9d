"""Boot loader entries (the Boot Loader Specification): GRUB's with blscfg, and systemd-boot's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kupgrade.host import bls, bootloader, grub
from kupgrade.host.bootloader import Loader
from kupgrade.machine.places import Places
from kupgrade.machine.units import RealBoot
from kupgrade.model.kernel import BootEntry, KernelRelease
from kupgrade.steps.base import UndoContext
from kupgrade.steps.bootentry import PinBootDefault

ENTRY = """\
# made by kernel-install
title      Fedora Linux
version    {release}
linux      /vmlinuz-{release}
initrd     /microcode.img
initrd     /initramfs-{release}.img
options    root=UUID=u1 ro
options    quiet
"""


def test_grub_with_loader_entries(put, tmp_path):
    """Fedora: grub.cfg has blscfg, the newest entry comes first, IDs go without .conf."""
    put("boot/grub2/grub.cfg", 'set default="${saved_entry}"\nblscfg\n')
    put("boot/grub2/grubenv", grub.format_env({"saved_entry": "abc-6.9.1"}))
    for release in ("6.9.1", "6.12.1"):
        put(f"boot/loader/entries/abc-{release}.conf", ENTRY.format(release=release))
    found = bootloader.entries(tmp_path)
    assert [entry.id for entry in found] == ["abc-6.12.1", "abc-6.9.1"]
    assert found[0].options == "root=UUID=u1 ro quiet"
    assert found[0].initrds == ("/microcode.img", "/initramfs-6.12.1.img")
    assert bootloader.read_default(tmp_path).entry.release == KernelRelease("6.9.1")


def _efivar(put, name, text):
    path = f"sys/firmware/efi/efivars/{name}-{bls.EFI_VENDOR}"
    put(path, b"\6\0\0\0" + (text + "\0").encode("utf-16-le"))


def test_systemd_boot_takes_its_default_from_the_variable_or_the_file(put, tmp_path):
    """LoaderEntryDefault goes before loader.conf; patterns are allowed; boot counters are no part of an ID."""
    _efivar(put, "LoaderInfo", "systemd-boot 257.9")
    put("efi/loader/loader.conf", "timeout 3\ndefault abc-*\n")
    put("efi/loader/entries/abc-6.9.1.conf", ENTRY.format(release="6.9.1"))
    put("efi/loader/entries/abc-6.12.1+3-0.conf", ENTRY.format(release="6.12.1"))
    put("efi/EFI/Linux/uki.efi")
    found = bootloader.read_default(tmp_path)
    assert (found.loader, found.stored, found.entry.id) == (Loader.SYSTEMD_BOOT, None, "abc-6.12.1.conf")
    _efivar(put, "LoaderEntryDefault", "abc-6.9.1.conf")
    found = bootloader.read_default(tmp_path)
    assert (found.stored, found.entry.release) == ("abc-6.9.1.conf", KernelRelease("6.9.1"))
    _efivar(put, "LoaderEntryDefault", "@saved")
    assert bootloader.read_default(tmp_path).entry is None


@pytest.mark.parametrize(
    ("default", "first"),
    [
        ("", "abc-6.12.10.conf"),
        ("default abc-*\n", "abc-6.12.10.conf"),
        ("default no-such-*\n", "abc-6.12.10.conf"),
        ("default abc-6.12.10.conf\ndefault ABC-6.12.9\n", "abc-6.12.9.conf"),
        ("default @saved\n", None),
    ],
)
def test_the_default_of_systemd_boot_is_the_newest_of_those_that_match(put, tmp_path, default, first):
    """Numbers count as numbers, so that the kernel taken for the default is the one that a cold start boots."""
    put("boot/loader/loader.conf", "timeout 3\n" + default)
    for release in ("6.12.9", "6.12.10"):
        put(f"boot/loader/entries/abc-{release}.conf", ENTRY.format(release=release))
    put("boot/loader/entries/abc-6.12.11+0-3.conf", ENTRY.format(release="6.12.11"))  # no tries left
    entry = bootloader.read_default(tmp_path).entry
    assert (entry.id if entry else None) == first


def test_the_menu_of_systemd_boot_goes_by_sort_keys(put, tmp_path):
    """Then the version counts and not the name; entries without one stand below."""
    for name, release, key in (("z", "6.12.9", "debian"), ("a", "6.12.10", "debian"), ("y", "7.0", "")):
        put(f"boot/loader/entries/{name}.conf", ENTRY.format(release=release) + (f"sort-key {key}\n" if key else ""))
    put("boot/loader/entries/x.conf", ENTRY.format(release="6.12.10~rc1") + "sort-key debian\n")
    assert [each.id for each in bootloader.entries(tmp_path)] == ["a.conf", "x.conf", "z.conf", "y.conf"]
    put("boot/EFI/Linux/uki.efi")
    assert bootloader.read_default(tmp_path).entry is None  # its sort-key is in the image


def test_entries_may_be_written_with_tabs(put, tmp_path):
    """As the boot loader reads them."""
    put("boot/loader/entries/a.conf", "title\tLinux\nversion\t6.12.9\nlinux\t \t/vmlinuz\noptions\troot=/dev/vda  ro\n")
    (found,) = bls.entries(tmp_path)
    assert (found.title, found.kernel, found.options) == ("Linux", "/vmlinuz", "root=/dev/vda  ro")
    assert found.release == KernelRelease("6.12.9")


def test_an_entry_for_the_next_start_alone_is_seen(put, tmp_path):
    """It goes before the default; GRUB has an empty name where there is none."""
    assert bootloader.chosen_once(tmp_path) == ""
    put("boot/grub/grub.cfg", 'set default="${next_entry}"\n')
    for entry in ("", "memtest"):
        put("boot/grub/grubenv", grub.format_env({"saved_entry": "old", "next_entry": entry}))
        assert bootloader.chosen_once(tmp_path) == entry
    _efivar(put, "LoaderInfo", "systemd-boot 257.9")
    assert bootloader.chosen_once(tmp_path) == ""
    _efivar(put, "LoaderEntryOneShot", "abc-6.9.1.conf")
    assert bootloader.chosen_once(tmp_path) == "abc-6.9.1.conf"


def test_systemd_boot_is_set_by_bootctl(put, tmp_path, tool):
    """And restored to nothing when nothing was stored."""
    put("boot/loader/entries/abc-6.9.1.conf", ENTRY.format(release="6.9.1"))
    log = tool("bootctl")
    before = bootloader.read_default(tmp_path)
    bootloader.set_default(bls.entries(tmp_path)[0], tmp_path)
    bootloader.restore_default(before, tmp_path)
    assert log.read_text().splitlines() == [
        f"--root={tmp_path} set-default abc-6.9.1.conf",
        f"--root={tmp_path} set-default ",
    ]


def test_fields_of_a_loader_entry_may_be_parted_by_tabs():
    """The specification takes spaces and tabs, and so do GRUB and systemd-boot."""
    tabs = "version\t6.9.1\nlinux \t/vmlinuz\noptions\troot=a  b\ninitrd\n"
    assert bls.parse_entry("a.conf", tabs) == BootEntry(
        "a.conf", "a.conf", KernelRelease("6.9.1"), "/vmlinuz", ("",), "root=a  b"
    )


def test_a_pin_over_what_was_not_known_is_taken_away(put, tmp_path):
    """Nothing was written down, and of several unified images only the boot loader knows the first."""
    _efivar(put, "LoaderInfo", "systemd-boot 257.9")
    put("efi/loader/entries/abc-6.9.1.conf", ENTRY.format(release="6.9.1"))
    put("efi/EFI/Linux/one.efi")
    put("efi/EFI/Linux/two.efi")
    changed: list[str | None] = []
    boot = RealBoot(Places(tmp_path))
    boot.set_default = changed.append
    boot.restore_default = changed.append
    step = PinBootDefault("6.9.1")
    host = SimpleNamespace(boot=boot)
    before = step.observe(host)
    assert before.entry == ""
    step.do(host, before)
    step.undo(host, before, UndoContext(same_boot=True, in_new_kernel=False, images_valid=False))
    assert changed == ["abc-6.9.1.conf", None]

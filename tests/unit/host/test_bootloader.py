from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.host import bls, bootloader, grub
from kupgrade.host.bootloader import Loader
from kupgrade.machine.places import Places
from kupgrade.machine.units import RealBoot
from kupgrade.model.kernel import BootEntry, KernelRelease
from kupgrade.steps.base import UndoContext
from kupgrade.steps.bootentry import PinBootDefault

OLD, NEW = KernelRelease("6.12.48+deb13-amd64"), KernelRelease("6.12.57+deb13-amd64")

GRUB_CFG = """\
### BEGIN /etc/grub.d/00_header ###
# doesn't matter
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
else
   set default="DEFAULT"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
  fi
}
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-u1' {
\tload_video
\tif [ x$grub_platform = xxen ]; then insmod xzio; fi
\techo\t'Loading Linux ...'
\tlinux\t/vmlinuz-6.12.57+deb13-amd64 root=UUID=u1 ro  quiet
\tinitrd\t/early.cpio /initrd.img-6.12.57+deb13-amd64
}
submenu 'Advanced options for Debian' $menuentry_id_option 'gnulinux-advanced-u1' {
\tmenuentry 'Debian, with Linux 6.12.57' --class os $menuentry_id_option 'gnulinux-6.12.57+deb13-amd64-advanced-u1' {
\t\tlinux\t/vmlinuz-6.12.57+deb13-amd64 root=UUID=u1 ro quiet
\t\tinitrd\t/initrd.img-6.12.57+deb13-amd64
\t}
\tmenuentry 'Debian 6.12.57 (recovery mode)' $menuentry_id_option 'gnulinux-6.12.57+deb13-amd64-recovery-u1' {
\t\tlinux\t/vmlinuz-6.12.57+deb13-amd64 root=UUID=u1 ro single
\t}
\tmenuentry 'Debian, with Linux 6.12.48' $menuentry_id_option 'gnulinux-6.12.48+deb13-amd64-advanced-u1' {
\t\tlinuxefi\t/vmlinuz-6.12.48+deb13-amd64 root=UUID=u1 ro quiet
\t}
}
menuentry 'UEFI Firmware Settings' --id uefi-firmware {
\tfwsetup
}
"""
ADVANCED = "gnulinux-advanced-u1>gnulinux-{}-advanced-u1"


def _env(**values):
    return grub.format_env(values)


@pytest.fixture
def with_grub(put):
    """GRUB with the given default and saved entry."""

    def build(default="${saved_entry}", **env):
        put("boot/grub/grub.cfg", GRUB_CFG.replace("DEFAULT", default))
        put("boot/grub/grubenv", _env(**env))

    return build


def test_the_menu_is_read_with_submenus():
    """IDs and positions as GRUB forms them; kernel, initrds and options of each entry."""
    menu = grub.parse_menu(GRUB_CFG)
    assert [entry.id for entry in menu.entries] == [
        "gnulinux-simple-u1",
        ADVANCED.format(NEW),
        "gnulinux-advanced-u1>gnulinux-6.12.57+deb13-amd64-recovery-u1",
        ADVANCED.format(OLD),
        "uefi-firmware",
    ]
    assert menu.positions == ("0", "1>0", "1>1", "1>2", "2")
    first, *_, old, firmware = menu.entries
    assert (first.release, first.options) == (NEW, "root=UUID=u1 ro quiet")
    assert first.initrds == ("/early.cpio", "/initrd.img-6.12.57+deb13-amd64")
    assert (old.release, firmware.release) == (OLD, None)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("", 0),
        ("0", 0),
        ("1>2", 3),
        ("Debian GNU/Linux", 0),
        (ADVANCED.format(OLD), 3),
        ("uefi-firmware", 4),
        ("Advanced options for Debian>Debian, with Linux 6.12.48", 3),
        ("1>Debian, with Linux 6.12.48", 3),
        ("gnulinux-advanced-u1>2", 3),
        ("1", 1),
        ("1>9", None),
        ("9", None),
        ("gone", None),
    ],
)
def test_a_default_is_a_position_an_id_or_a_title(wanted, index):
    """What names no entry is unknown: GRUB would take the first and say nothing."""
    menu = grub.parse_menu(GRUB_CFG)
    assert grub.select(menu, wanted) == (None if index is None else menu.entries[index])


@given(st.text())
def test_no_text_makes_the_menu_parser_crash(text):
    """grub.cfg may be written by hand."""
    grub.parse_menu(text)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
        max_size=6,
    )
)
def test_the_environment_block_round_trip(values):
    """Backslashes and newlines survive; the block is always 1024 bytes."""
    block = grub.format_env(values)
    assert len(block) == 1024
    assert grub.parse_env(block) == values


@given(st.binary(max_size=200))
def test_a_damaged_environment_block_never_crashes(data):
    """It is read or refused."""
    grub.parse_env(grub.SIGNATURE + data)
    if not data.startswith(grub.SIGNATURE):
        with pytest.raises(BadInputError):
            grub.parse_env(data)


def test_an_environment_block_that_is_full_is_refused():
    """GRUB's block cannot grow."""
    with pytest.raises(BadInputError, match="full"):
        grub.format_env({"saved_entry": "x" * 1024})


def test_grub_is_detected_and_its_saved_entry_read(with_grub, tmp_path):
    """With GRUB_DEFAULT=saved the block decides."""
    with_grub(saved_entry=ADVANCED.format(OLD), other="kept")
    found = bootloader.read_default(tmp_path)
    assert (found.loader, found.stored, found.obstacle) == (Loader.GRUB, ADVANCED.format(OLD), "")
    assert found.entry.release == OLD


def entry(release: KernelRelease, root: Path) -> BootEntry:
    found = bootloader.entry_for(release, root)
    assert found is not None
    return found


def test_set_and_restore_the_default_of_grub(with_grub, tmp_path):
    """Other variables stay; restoring an unset variable removes it again."""
    with_grub(other="kept")
    before = bootloader.read_default(tmp_path)
    assert (before.stored, before.entry.id) == (None, "gnulinux-simple-u1")
    place = (tmp_path / "boot/grub/grubenv").stat().st_ino
    bootloader.set_default(entry(OLD, tmp_path), tmp_path)
    assert bootloader.read_default(tmp_path).entry.release == OLD
    bootloader.restore_default(before, tmp_path)
    assert grub.read_env(tmp_path) == {"other": "kept"}
    assert (tmp_path / "boot/grub/grubenv").stat().st_size == 1024
    # GRUB reads without replaying a journal: a renamed file would not be there for it after a power cut.
    assert (tmp_path / "boot/grub/grubenv").stat().st_ino == place
    assert not list(tmp_path.rglob("*.new"))


def test_a_default_that_names_no_entry_is_put_back(with_grub, tmp_path):
    """The saved entry of a kernel that was removed means nothing to us; it is pinned over, and put back."""
    with_grub(saved_entry="gnulinux-gone")
    boot = RealBoot(Places(tmp_path))
    step = PinBootDefault(OLD.text)
    host = SimpleNamespace(boot=boot)
    before = step.observe(host)
    step.do(host, before)
    assert grub.read_env(tmp_path)["saved_entry"] == ADVANCED.format(OLD)
    step.undo(host, before, UndoContext(same_boot=True, in_new_kernel=False, images_valid=False))
    assert grub.read_env(tmp_path)["saved_entry"] == "gnulinux-gone"


def test_the_entry_for_a_release_is_pinned_and_not_for_recovery(with_grub, tmp_path):
    """GRUB's topmost entry would mean whatever is newest at the next boot."""
    with_grub()
    assert bootloader.entry_for(NEW, tmp_path).id == ADVANCED.format(NEW)
    assert bootloader.entry_for(KernelRelease("7.0"), tmp_path) is None


def test_a_fixed_default_cannot_be_set(with_grub, tmp_path):
    """The refusal says how to let GRUB take its default from the block; undo touches nothing."""
    with_grub(default="1>2")
    before = bootloader.read_default(tmp_path)
    assert before.entry.release == OLD
    block = (tmp_path / "boot/grub/grubenv").read_bytes()
    with pytest.raises(BadInputError, match="GRUB_DEFAULT=saved"):
        bootloader.set_default(entry(OLD, tmp_path), tmp_path)
    bootloader.restore_default(before, tmp_path)
    assert (tmp_path / "boot/grub/grubenv").read_bytes() == block


@pytest.mark.parametrize(
    ("files", "loader"),
    [
        ((), Loader.NONE),
        (("boot/vmlinuz-6.1", "boot/config-6.1"), Loader.NONE),
        (("boot/vmlinuz-6.1", "boot/extlinux/extlinux.conf"), Loader.UNKNOWN),
        (("boot/loader/loader.conf",), Loader.SYSTEMD_BOOT),
    ],
)
def test_no_boot_loader_is_told_from_an_unknown_one(put, tmp_path, tool, files, loader):
    """A virtual machine whose kernel comes from outside has nothing but kernels in /boot."""
    for name in files:
        put(name)
    found = bootloader.read_default(tmp_path)
    assert found.loader is loader
    if loader is not Loader.SYSTEMD_BOOT:
        assert found.obstacle
        with pytest.raises(BadInputError):
            bootloader.set_default(bls.parse_entry("a.conf", ""), tmp_path)
        bootloader.restore_default(found, tmp_path)  # nothing to undo: no tool is asked, and none is there


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("Advanced options for Debian>Debian, with Linux 6.12.48", 3),
        ("gnulinux-advanced-u1>Debian, with Linux 6.12.48", 3),
        (f"1>gnulinux-{OLD}-advanced-u1", 3),
        ("Advanced options for Debian>2", 3),
        (f"gnulinux-{OLD}-advanced-u1", None),
        ("Debian, with Linux 6.12.48", None),
        ("0>0", None),
    ],
)
def test_an_entry_of_a_submenu_is_named_with_the_submenu(wanted, index):
    """Each level by position, ID or title. Without its submenu GRUB does not find an entry, and boots the first."""
    menu = grub.parse_menu(GRUB_CFG)
    assert grub.select(menu, wanted) == (None if index is None else menu.entries[index])


def test_a_commented_out_entry_is_no_entry():
    """Neither is its end that of the submenu around it."""
    comment = "# menuentry 'old' {\n# }\n"
    around = GRUB_CFG.replace("submenu ", f"{comment}submenu ")
    commented = around.replace("\tmenuentry ", f"\t{comment}\tmenuentry ", 1)
    assert commented != GRUB_CFG
    assert grub.parse_menu(commented) == grub.parse_menu(GRUB_CFG)

"""The virtual host's boot loader files, as kupgrade's own reader sees them."""

from __future__ import annotations

import struct

from kupgrade.host import grub
from kupgrade.rehearsal import bootdisk

RELEASES = ["6.12.1-cloud-amd64", "7.3.4-cloud-amd64"]


def test_the_menu_reads_like_a_real_one() -> None:
    """One entry a kernel, the default out of the environment block, the command line as given."""
    menu = grub.parse_menu(bootdisk.menu(RELEASES, "root=/dev/vda1 quiet"))
    assert menu.uses_saved
    assert [str(entry.release) for entry in menu.entries] == RELEASES
    assert {entry.options for entry in menu.entries} == {"root=/dev/vda1 quiet"}
    saved = grub.parse_env(bootdisk.environment_block(RELEASES[0]).encode())["saved_entry"]
    chosen = grub.select(menu, saved)
    assert chosen is not None and str(chosen.release) == RELEASES[0]


def test_the_environment_block_has_its_exact_size() -> None:
    """GRUB writes the block in place: 1024 bytes, never less."""
    assert len(bootdisk.environment_block(RELEASES[1]).encode()) == 1024


def test_the_partition_table_has_one_active_linux_partition() -> None:
    """The BIOS finds its signature, GRUB its partition behind the gap."""
    table = bootdisk.partition_table(1000)
    assert len(table) == 72 and table.endswith(b"\x55\xaa")
    active, kind, start, sectors = table[6], table[10], *struct.unpack_from("<II", table, 14)
    assert (active, kind, start, sectors) == (0x80, 0x83, bootdisk.START, 1000)

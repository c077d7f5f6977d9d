"""A disk that boots by itself: a partition table, and GRUB with its menu, as a Debian host with a BIOS has them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host.command import run

SECTOR = 512
START = 2048  # first sector of the only partition; GRUB's core lies between it and the partition table
ROOT_DEVICE = "/dev/vda1"
MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "configfile", "linux", "loadenv", "test", "echo", "search")
_ENVIRONMENT_BYTES = 1024

_HEADER = """# In the form grub-mkconfig writes, GRUB_DEFAULT=saved
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
set timeout=0
"""
_ENTRY = """menuentry 'Debian GNU/Linux, with Linux {release}' --class debian --id '{identity}' {{
	linux	/boot/vmlinuz-{release} {command_line}
	initrd	/boot/initrd.img-{release}
}}
"""


def identity(release: str) -> str:
    """The ID of a release's menu entry."""
    return f"gnulinux-{release}-advanced"


def menu(releases: Sequence[str], command_line: str) -> str:
    """grub.cfg with one entry a release; the environment block names the default."""
    entries = [_ENTRY.format(release=r, identity=identity(r), command_line=command_line) for r in releases]
    return _HEADER + "".join(entries)


def environment_block(default: str) -> str:
    """grubenv with the release `default` saved as the default entry."""
    text = f"# GRUB Environment Block\nsaved_entry={identity(default)}\n"
    return text.ljust(_ENVIRONMENT_BYTES, "#")


def partition_table(sectors: int) -> bytes:
    """The last 72 bytes of a master boot record with one active Linux partition of `sectors` sectors."""
    beyond_chs = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0x80, beyond_chs, 0x83, beyond_chs, START, sectors)
    return struct.pack("<I", 0x6B757067) + b"\0\0" + entry + bytes(48) + b"\x55\xaa"


def embed(image: Path, root: Path, sectors: int) -> None:
    """Write partition table and GRUB into the first sectors of `image`; `root` is a Debian root with grub-pc-bin.

    boot.img finds the core in the sector after it and the core's own block list is right for that place, which is
    where grub-install puts it, too. Raises BadInputError when the core is too large for the gap.
    """
    place = "tmp/core.img"
    prefix = f"(hd0,msdos1)/{'boot/grub'}"
    run(["chroot", str(root), "grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", f"/{place}", *MODULES])
    core = (root / place).read_bytes()
    (root / place).unlink()
    if len(core) > (START - 1) * SECTOR:
        raise BadInputError("GRUB's core does not fit before the first partition", f"{len(core)} bytes")
    boot = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    table = partition_table(sectors)
    with image.open("r+b") as disk:
        disk.write(boot[: SECTOR - len(table)] + table + core)

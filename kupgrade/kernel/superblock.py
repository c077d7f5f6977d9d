"""The UUID of a file system, read from its superblock: the standby initramfs has no udev to make links by it.

Sources: Documentation/filesystems/ext4/super.rst (s_magic at 0x38, s_uuid at 0x68 of the block at 1024),
fs/xfs/libxfs/xfs_format.h (sb_magicnum, sb_uuid at 32), include/uapi/linux/btrfs_tree.h (fsid at 0x20, magic at 0x40
of the block at 64 KiB).
"""

from __future__ import annotations

import uuid
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel.libc import reported

_LAYOUTS = (  # where the magic is, what it is, where the UUID is
    (1024 + 0x38, b"\x53\xef", 1024 + 0x68),
    (0, b"XFSB", 32),
    (0x10000 + 0x40, b"_BHRfS_M", 0x10000 + 0x20),
)
_NOT_DISKS = ("loop", "ram", "zram", "dm-", "sr", "fd", "nbd", "md")


def uuid_of(device: Path) -> str | None:
    """The UUID of an ext2/3/4, XFS or Btrfs file system; None for anything else. Raises KernelError."""
    with reported("read", device), device.open("rb", buffering=0) as file:
        for where, magic, at in _LAYOUTS:
            file.seek(where)
            if file.read(len(magic)) == magic:
                file.seek(at)
                return str(uuid.UUID(bytes=file.read(16)))
    return None


def journal_elsewhere(device: Path) -> bool:
    """Whether it is an ext3/4 file system whose journal lies on another device. Raises KernelError."""
    with reported("read", device), device.open("rb", buffering=0) as file:
        file.seek(1024)
        block = file.read(1024)
    has_journal = block[0x38:0x3A] == b"\x53\xef" and block[0x5C] & 4  # s_magic, s_feature_compat
    return bool(has_journal) and block[0xE0:0xE4] == bytes(4)  # s_journal_inum


def find(wanted: str, root: Path = Path("/")) -> Path | None:
    """The disk or partition with the file system `wanted`; None: not there (yet). Mapped devices do not count."""
    folder = root / "sys/class/block"
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        if path.name.startswith(_NOT_DISKS):
            continue
        device = root / "dev" / path.name
        try:
            if device.exists() and uuid_of(device) == wanted:
                return device
        except KernelError:
            continue  # no medium, or just going
    return None

"""Kernels and initrds that are no regular files, or whose figures are hostile: refused, nothing waits for ever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import image, initramfs
from kupgrade.host.initramfs import CpioEntry, write_cpio

READERS = pytest.mark.parametrize("read", [image.read, initramfs.read], ids=["kernel", "initrd"])


@READERS
@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_a_file_does_not_block(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    """Nobody writes into the pipe: without a refusal the reader would wait for ever."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(BadInputError, match="not a regular file"):
        read(path)


@READERS
@pytest.mark.parametrize("device", ["/dev/null", "/dev/tty0", "/dev/full"])
def test_a_device_is_not_read(read: Callable[[Path], Any], device: str, tmp_path: Path) -> None:
    """Directly or by a link: some devices never end, others act when they are read."""
    link = tmp_path / "link"
    link.symlink_to(device)
    for path in (Path(device), link):
        with pytest.raises(BadInputError, match=r"not a regular file|cannot be read"):
            read(path)


@READERS
def test_a_file_larger_than_any_kernel_is_not_read_into_memory(read: Callable[[Path], Any], tmp_path: Path) -> None:
    """A sparse file of a terabyte costs nothing on disk, and would cost all memory."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadInputError, match="too large"):
        read(path)


@READERS
def test_a_directory_is_told(read: Callable[[Path], Any], tmp_path: Path) -> None:
    """A directory of the image's name is no image."""
    with pytest.raises(BadInputError, match="not a regular file"):
        read(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("field", [b"-0000074", b"+0000001", b" 0000001", b"0_000001", b"0x000001"])
def test_the_fields_of_a_cpio_header_are_hexadecimal_digits_only(put: Callable[..., Path], field: bytes) -> None:
    """int() takes signs, blanks and underscores: a negative size would lead back to the same header for ever."""
    data = bytearray(write_cpio((CpioEntry("init", 0o100755, b"#!"),)))
    data[6 + 6 * 8 : 14 + 6 * 8] = field  # c_filesize
    with pytest.raises(BadInputError, match="damaged"):
        initramfs.read(put("initrd", bytes(data)))

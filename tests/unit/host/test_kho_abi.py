"""What an image would take over: the names the kernel compares, never a text that mentions them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import kho_abi
from kupgrade.model.kho import KhoAbi

STRINGS = b"\0kho-v4\0luo-v5\0memfd-v2\0"
OPTIONS = "CONFIG_KEXEC_HANDOVER=y\nCONFIG_LIVEUPDATE=y\nCONFIG_LIVEUPDATE_MEMFD=y\n"

Put = Callable[[str, str | bytes], Path]
Make = Callable[..., bytes]


@pytest.mark.parametrize("config", [None, OPTIONS])
def test_the_names_in_an_image(put: Put, bzimage: Make, elf: Make, config: str | None) -> None:
    """With and without a configuration inside."""
    path = put("vmlinuz", bzimage(elf(extra=STRINGS, config=config)))
    assert kho_abi.read(path) == KhoAbi("kho-v4", "luo-v5", "memfd-v2", known=True)


def test_a_name_inside_a_structure(put: Put, bzimage: Make, elf: Make) -> None:
    """That of memory files is a field behind a pointer, as compiled kernels were seen to have it."""
    handler = bytes.fromhex("c0388381ffffffff") + b"memfd-v2".ljust(48, b"\0")
    found = kho_abi.read(put("vmlinuz", bzimage(elf(extra=b"\0kho-v4\0luo-v5\0" + handler, config=OPTIONS))))
    assert found == KhoAbi("kho-v4", "luo-v5", "memfd-v2", known=True)


@pytest.mark.parametrize(
    "text",
    [
        b"\0Passed KHO data, but CONFIG_KEXEC_HANDOVER not set. Ignoring.\0",
        b"\0needs kho-v4\0about luo-v5 here\0xmemfd-v2\0",
        b"\0kho-v4\n\0kho-v4x\0kho-v\0",
        b"\0kho-v1234\0",
    ],
)
def test_a_text_that_mentions_it_does_not_count(put: Put, bzimage: Make, elf: Make, text: bytes) -> None:
    """Stock kernels print the name of the option they were built without."""
    assert kho_abi.read(put("vmlinuz", bzimage(elf(extra=text)))) == KhoAbi(None, None, None, known=True)


def test_kho_without_live_update(put: Put, bzimage: Make, elf: Make) -> None:
    """Each part counts by itself."""
    config = "CONFIG_KEXEC_HANDOVER=y\n# CONFIG_LIVEUPDATE is not set\n"
    found = kho_abi.read(put("vmlinuz", bzimage(elf(extra=b"\0kho-v4\0", config=config))))
    assert found == KhoAbi("kho-v4", None, None, known=True)


@pytest.mark.parametrize(
    ("extra", "config", "why"),
    [
        (b"\0kho-v3\0kho-v4\0", None, "names kho-v3 and kho-v4"),
        (b"\0kho-v4\0luo-v5\0", OPTIONS, "CONFIG_LIVEUPDATE_MEMFD, but names no memfd format"),
        (STRINGS, "# CONFIG_KEXEC_HANDOVER is not set\n", "without CONFIG_KEXEC_HANDOVER, but names kho-v4"),
    ],
)
def test_an_image_that_contradicts_itself_is_not_known(
    put: Put, bzimage: Make, elf: Make, extra: bytes, config: str | None, why: str
) -> None:
    """Rather no answer than a wrong one."""
    found = kho_abi.read(put("vmlinuz", bzimage(elf(extra=extra, config=config))))
    assert (found.kho, found.luo, found.memfd, found.known) == (None, None, None, False)
    assert why in found.unread


def test_an_image_that_was_not_unpacked_is_not_known(put: Put, bzimage: Make, tool: object) -> None:
    """Without zstd, for one."""
    frame = bytes.fromhex("28b52ffd2000010000")
    found = kho_abi.read(put("vmlinuz", bzimage(b"", pack=lambda _: frame, size_appended=True)))
    assert (found.known, found.unread) == (False, "zstd is not installed")


def test_a_file_that_is_no_image_is_refused(put: Put) -> None:
    """As everywhere."""
    with pytest.raises(BadInputError):
        kho_abi.read(put("vmlinuz", b"no image"))

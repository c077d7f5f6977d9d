"""systemd-boot's order of entries: a default that is a pattern means the first of them, which is the newest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kupgrade.host import bls, bootloader

Put = Callable[[str, "str | bytes"], Path]


def _entries(put: Put, *names: str, text: str = "title T\nlinux /vmlinuz\n") -> None:
    for name in names:
        put(f"efi/loader/entries/{name}.conf", text)


def _default(put: Put, root: Path, pattern: str) -> str | None:
    put("efi/loader/loader.conf", f"default {pattern}\n")
    found = bootloader.read_default(root).entry
    return None if found is None else found.id


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("abc-6.9.1", "abc-6.12.1"), "abc-6.12.1"),
        (("abc-6.9.1", "abc-6.10.0-rc1", "abc-6.10.0~rc1"), "abc-6.10.0-rc1"),
        (("abc-6.9", "abc-6.9~rc1"), "abc-6.9"),
        (("abc-" + "1" * 100, "abc-" + "2" * 99), "abc-" + "1" * 100),
        (("abc-6.9.1", "abc-6.12.1+0-3"), "abc-6.9.1"),
        (("abc-6.9.1", "abc-6.12.1+1-2"), "abc-6.12.1"),
    ],
)
def test_a_pattern_means_the_newest(put: Put, tmp_path: Path, names: tuple[str, ...], first: str) -> None:
    """The old kernel is not pinned where it is taken for the default: a reset would start the new one, unguarded.

    Versions, not characters; what has no tries left comes last.
    """
    _entries(put, *names)
    assert _default(put, tmp_path, "abc-*") == f"{first}.conf"


def test_sort_keys_go_first(put: Put, tmp_path: Path) -> None:
    """Entries with one come before those without; then key, machine and version count, the ID only in the end."""
    _entries(put, "z-9")
    _entries(put, "b", text="sort-key os\nversion 6.9.1\nmachine-id m\nlinux /vmlinuz\n")
    _entries(put, "a", text="sort-key os\nversion 6.12.1\nmachine-id m\nlinux /vmlinuz\n")
    huge = "9" * 5000
    _entries(put, "d", text=f"sort-key zz\nversion {huge}\nmachine-id n\nlinux /vmlinuz\n")
    _entries(put, "c", text="sort-key zz\nversion 7\nmachine-id m\nlinux /vmlinuz\n")
    assert [each.id for each in bls.entries(tmp_path)] == ["a.conf", "b.conf", "c.conf", "d.conf", "z-9.conf"]
    assert _default(put, tmp_path, "*") == "a.conf"


def test_case_does_not_count(put: Put, tmp_path: Path) -> None:
    """The loader folds it, in patterns and in names."""
    _entries(put, "Debian-6.9.1")
    assert _default(put, tmp_path, "debian-*") == "Debian-6.9.1.conf"


def test_where_a_unified_image_stands_is_unknown(put: Put, tmp_path: Path) -> None:
    """Its sort key is inside of it: which of several comes first is not guessed."""
    _entries(put, "abc-6.9.1")
    put("efi/EFI/Linux/abc-6.12.1.efi", b"")
    assert _default(put, tmp_path, "abc-*") is None
    assert _default(put, tmp_path, "abc-6.12*") == "abc-6.12.1.efi"

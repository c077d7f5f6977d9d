from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.host import initramfs
from kupgrade.host.initramfs import CpioEntry
from kupgrade.model.kernel import Compression

FILE, FOLDER = stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755
MAIN = (
    CpioEntry("bin", FOLDER),
    CpioEntry("bin/sh", FILE, b"shell"),
    CpioEntry("init", FILE, b"#!/bin/sh\n"),
    CpioEntry("usr/lib/modules/6.1.0-9/kernel/a.ko", FILE, b"module"),
)
EARLY = (CpioEntry("kernel/x86/microcode/GenuineIntel.bin", FILE, b"microcode"),)


def _lz4(data):
    return subprocess.run(["lz4", "-lqc", "-"], input=data, capture_output=True, check=True).stdout


def _zstd(data):
    return subprocess.run(["zstd", "-qc", "-"], input=data, capture_output=True, check=True).stdout


PACKERS = {
    "none": bytes,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    "lz4": _lz4,
    "zstd": _zstd,
}


def _packer(name):
    if name in ("lz4", "zstd") and not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    return PACKERS[name]


@pytest.fixture
def initrd(put):
    """An initrd as mkinitramfs makes it: microcode, then the packed main archive."""

    def build(pack="gzip", main=MAIN):
        return put("initrd.img", initramfs.write_cpio(EARLY) + _packer(pack)(initramfs.write_cpio(main)))

    return build


@pytest.mark.parametrize("pack", PACKERS)
def test_facts_of_an_initrd(initrd, pack):
    """Whose modules it has, whether it has an init and a shell, and how each part is packed."""
    found = initramfs.read(initrd(pack))
    assert [release.text for release in found.releases] == ["6.1.0-9"]
    assert (found.has_init, found.has_shell) == (True, True)
    assert [kind.value for kind in found.compressions] == ["none", pack]


def test_an_initrd_without_init_or_modules_is_told(initrd):
    """Both are facts, not errors: a kernel with everything built in needs no modules."""
    found = initramfs.read(initrd(main=(CpioEntry("etc/fstab", FILE),)))
    assert (found.has_init, found.has_shell, found.releases) == (False, False, ())


def test_a_missing_tool_leaves_the_main_archive_unread(initrd, tmp_path, monkeypatch):
    """Without zstd nothing is guessed."""
    path = initrd("zstd")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = initramfs.read(path)
    assert found.unread == "zstd is not installed"
    assert (found.has_init, found.compressions[1]) == (False, Compression.ZSTD)


@pytest.mark.parametrize("pack", PACKERS)
def test_truncation_is_found(initrd, pack):
    """Cut anywhere but between archives, an initrd is refused."""
    path = initrd(pack)
    whole, early = path.read_bytes(), len(initramfs.write_cpio(EARLY))
    step = 1 if pack in ("none", "gzip", "xz") else 37  # the others start a child each time
    for length in range(0, len(whole), step):
        if length == early:
            continue  # the main archive is missing as a whole: that is has_init
        path.write_bytes(whole[:length])
        with pytest.raises(BadInputError):
            initramfs.read(path)


@pytest.mark.parametrize("pack", ["gzip", "xz", "zstd"])
def test_corruption_is_found(initrd, pack):
    """A changed byte in the packed part fails its checksum."""
    path = initrd(pack)
    whole = bytearray(path.read_bytes())
    whole[-20] ^= 0x55
    path.write_bytes(whole)
    with pytest.raises(BadInputError, match="damaged"):
        initramfs.read(path)


def test_garbage_between_archives_is_refused(put):
    """The kernel would stop there ("junk within compressed archive")."""
    data = initramfs.write_cpio(EARLY) + b"garbage!" + initramfs.write_cpio(MAIN)
    with pytest.raises(BadInputError, match="no archive"):
        initramfs.read(put("initrd", data))


@pytest.mark.parametrize("pack", PACKERS)
def test_appended_files_are_read_behind_the_original(initrd, tmp_path, pack):
    """The original bytes stay as they are, and the appended archive is found after them."""
    path, out = initrd(pack), tmp_path / "out.img"
    extra = (CpioEntry("kupgrade-init", FILE, b"#!/bin/sh\n"),)
    initramfs.append_cpio(path, extra, out)
    whole = out.read_bytes()
    assert whole.startswith(path.read_bytes())
    chain = tuple(initramfs.archives(whole, "out"))
    assert [archive.entries for archive in chain[2:]] == [extra]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_appended_to_a_damaged_initrd(initrd, tmp_path):
    """The kernel would never reach our files."""
    path = initrd()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInputError):
        initramfs.append_cpio(path, (), tmp_path / "out")
    assert not (tmp_path / "out").exists()


ENTRIES = st.lists(
    st.builds(
        CpioEntry,
        st.from_regex(r"[a-z][a-z0-9_.-]{0,20}(/[a-z]{1,9}){0,3}", fullmatch=True),
        st.sampled_from([FILE, FOLDER, stat.S_IFLNK | 0o777]),
        st.binary(max_size=50),
        st.tuples(st.integers(0, 255), st.integers(0, 255)),
    ),
    max_size=6,
)


@given(ENTRIES, st.integers(0, 7))
def test_cpio_round_trip(entries, units):
    """What is written is read back, wherever it starts."""
    before = bytes(4 * units)
    data = before + initramfs.write_cpio(entries)
    found, end = initramfs.read_cpio(data, len(before), "archive")
    assert found == tuple(entries)
    assert end == len(data)


@given(ENTRIES, st.data())
def test_a_damaged_cpio_never_crashes(entries, data):
    """Any change and any cut is read or refused."""
    raw = bytearray(initramfs.write_cpio(entries))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        tuple(initramfs.archives(bytes(raw), "archive"))
    except BadInputError:
        pass


@given(ENTRIES)
def test_cpio_agrees_with_the_real_tool(entries):
    """cpio(1), where it is installed, lists the same names."""
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    raw = initramfs.write_cpio(entries)
    done = subprocess.run(["cpio", "-it", "--quiet"], input=raw, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [entry.name for entry in entries]

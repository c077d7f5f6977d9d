from __future__ import annotations

import bz2
import lzma
import shutil
import struct
import subprocess
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.host import image
from kupgrade.model.kernel import Compression


def _child(*argv):
    return lambda data: subprocess.run(argv, input=data, capture_output=True, check=True).stdout


PACKERS = {
    Compression.BZIP2: bz2.compress,
    Compression.XZ: lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    Compression.LZMA: lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    Compression.ZSTD: _child("zstd", "-qc", "-"),
    Compression.LZ4: _child("lz4", "-lqc", "-"),
}


def test_facts_of_an_image(put, bzimage):
    """Release, architecture, build ID, banner and sizes are read without booting."""
    path = put("vmlinuz", bzimage())
    found = image.read(path)
    assert (found.release.text, found.architecture) == ("6.12.107+deb13-amd64", "x86_64")
    assert found.build_id == bytes(range(20)).hex()
    assert found.banner == "Linux version 6.12.107+deb13-amd64 (builder@example) (gcc 14) #1 SMP"
    assert (found.cmdline_limit, found.init_size, found.relocatable) == (2047, 64 << 20, True)
    assert (found.size, found.compression) == (path.stat().st_size, Compression.GZIP)
    assert (found.signed, found.config, found.unread) == (False, None, "")


@pytest.mark.parametrize("kind", PACKERS)
def test_every_compression_is_unpacked(put, bzimage, kind):
    """Each with the unpacked size behind it, as the kernel's build appends it."""
    tool = {Compression.ZSTD: "zstd", Compression.LZ4: "lz4"}.get(kind)
    if tool and not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    found = image.read(put("vmlinuz", bzimage(pack=PACKERS[kind], size_appended=True)))
    assert (found.compression, found.unread) == (kind, "")
    assert found.build_id


def test_a_missing_tool_leaves_facts_unread_instead_of_guessed(put, bzimage, tool):
    """Without zstd the header is still told, and why the rest is not."""
    frame = bytes.fromhex("28b52ffd2000010000")  # an empty frame: one raw block of no bytes
    data = bzimage(b"", pack=lambda _: frame, size_appended=True)
    found = image.read(put("vmlinuz", data))
    assert found.unread == "zstd is not installed"
    assert (found.release.text, found.architecture) == ("6.12.107+deb13-amd64", "x86_64")
    assert (found.build_id, found.banner) == ("", "")


def test_a_configuration_inside_is_read(put, bzimage, elf):
    """CONFIG_IKCONFIG: options, strings without quotes, and what is not set."""
    text = 'CONFIG_A=y\nCONFIG_B=m\nCONFIG_S="x=y"\n# CONFIG_N is not set\n# comment\n'
    found = image.read(put("vmlinuz", bzimage(elf(config=text))))
    assert found.config == {"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_S": "x=y", "CONFIG_N": "n"}


def test_handover_abi_strings_are_whole_words(put, bzimage, elf):
    """Only the strings the kernel compares count, not texts that mention them."""
    found = image.read(put("vmlinuz", bzimage(elf(extra=b"\0kho-v4\0\0luo-v5\0about memfd-v2 here\0"))))
    assert found.handover_abi == ("kho-v4", "luo-v5")


def test_a_signature_is_noticed(put, bzimage):
    """A certificate table behind the image means signed."""
    assert image.read(put("vmlinuz", bzimage(signature=b"S" * 24))).signed


def test_a_cut_signature_is_refused(put, bzimage):
    """The table's size is known from the PE header."""
    with pytest.raises(BadInputError, match="signature is cut off"):
        image.read(put("vmlinuz", bzimage(signature=b"S" * 24)[:-1]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"x" * 600, "no setup header"),
        (b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", 62) + bytes(600), r"vmlinux\) for x86_64"),
        (b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", 183) + bytes(600), "for aarch64"),
        (b"MZ\0\0zimg" + bytes(600), "EFI zboot"),
        (bytes(0x38) + b"ARM\x64" + bytes(600), "arm64 Image"),
        (bytes(0x30) + b"RISCV\0\0\0RSC\x05" + bytes(600), "riscv Image"),
        (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(600), "arm zImage"),
        (b"\x1f\x8b" + bytes(600), "gzip file"),
        (b"MZ" + bytes(500) + b".linux\0\0" + bytes(600), "unified kernel image"),
        (b"070701" + bytes(600), "cpio archive"),
    ],
)
def test_other_files_are_named_for_what_they_are(put, data, words):
    """The refusal says which kind of file it is, with a remedy."""
    with pytest.raises(BadInputError, match=words) as caught:
        image.read(put("vmlinuz", data))
    assert caught.value.remedy


def test_a_32_bit_image_is_told(put, bzimage, elf):
    """The payload's ELF header decides the architecture."""
    assert image.read(put("vmlinuz", bzimage(elf(machine=3), xloadflags=0))).architecture == "i386"


def test_an_old_boot_protocol_is_refused(put, bzimage):
    """kexec_file_load needs 2.12."""
    with pytest.raises(BadInputError, match=r"2\.11 is too old"):
        image.read(put("vmlinuz", bzimage(protocol=0x20B)))


def test_a_header_that_lies_about_the_release_is_refused(put, bzimage, elf):
    """Header and payload of two kernels do not make one."""
    with pytest.raises(BadInputError, match=r"payload says 5\.0"):
        image.read(put("vmlinuz", bzimage(elf(release="5.0"))))


def test_a_payload_of_another_size_than_declared_is_refused(put, bzimage, elf):
    """lzma and lz4 have no checksum worth the name: the appended size is checked."""
    pack = lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + struct.pack("<I", len(data) + 1)  # noqa: E731
    with pytest.raises(BadInputError, match="instead of"):
        image.read(put("vmlinuz", bzimage(pack=pack)))


def test_an_absent_file_is_bad_input(tmp_path):
    """Not a traceback."""
    with pytest.raises(BadInputError, match="cannot be read"):
        image.read(tmp_path / "absent")


def test_truncation_at_every_length_is_found(tmp_path, bzimage):
    """No prefix of an image is taken for an image, and none crashes the reader."""
    whole = bzimage()
    path = tmp_path / "vmlinuz"
    path.write_bytes(whole)
    image.read(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInputError):
            image.read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_of_the_payload_is_found(tmp_path, bzimage, data):
    """gzip's checksum covers what the kernel unpacks: corruption is refused, never a crash."""
    whole = bytearray(bzimage())
    start, length = struct.unpack_from("<II", whole, 0x248)
    # bytes 4 to 9 of a gzip header (time, flags, system) carry no content
    at = data.draw(st.integers(10, length - 1)) + 1024 + start
    before = _unpacked(bytes(whole))
    whole[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "vmlinuz"
    path.write_bytes(whole)
    try:
        image.read(path)
    except BadInputError:
        return
    assert _unpacked(bytes(whole)) == before  # bits that only fill the last byte of the stream mean nothing


def _unpacked(whole: bytes) -> bytes:
    start, _ = struct.unpack_from("<II", whole, 0x248)
    return zlib.decompressobj(31).decompress(bytes(whole[1024 + start :]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.integers(0, 1023), st.integers(0, 255))
def test_a_changed_byte_of_the_header_never_crashes(tmp_path, bzimage, at, value):
    """Whatever the header says, the reader answers or refuses."""
    whole = bytearray(bzimage())
    whole[at] = value
    path = tmp_path / "vmlinuz"
    path.write_bytes(whole)
    try:
        image.read(path)
    except BadInputError:
        pass

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kupgrade.kernel import park_code

SOURCE = Path(__file__).parents[3] / "kupgrade/kmod/park.S"


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("objcopy")), reason="needs binutils")
def test_the_code_is_what_the_source_assembles_to(tmp_path):
    """The constant and park.S say the same, byte for byte, up to the parameters."""
    obj, binary = tmp_path / "park.o", tmp_path / "park.bin"
    subprocess.run(["as", "--64", "-o", obj, SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, binary], check=True)
    assembled = binary.read_bytes()
    expected = park_code.park_page(0, 0, 0)[: len(assembled)]
    assert assembled == expected
    assert len(assembled) == park_code.PARAMETERS_OFFSET + park_code.PARAMETERS.size


def test_the_page_carries_its_parameters():
    """Page table, slots and their number lie behind the code, in a whole page."""
    page = park_code.park_page(0x1234000, 0x5678000, 9)
    assert len(page) == park_code.PAGE
    assert struct.unpack_from("<QQI", page, 0x200) == (0x1234000, 0x5678000, 9)
    assert page.startswith(park_code.CODE)


def test_ids_of_all_32_bits_have_slots_of_their_own():
    """x2APIC ids beyond 255 are not folded onto others."""
    table = park_code.slot_table([1, 0x101, 0xFFFFFFFE])
    assert [struct.unpack_from("<II", table, 64 * n) for n in range(3)] == [(1, 0), (0x101, 0), (0xFFFFFFFE, 0)]


def test_the_mailbox_is_the_one_of_the_specification():
    """Command, two reserved bytes, APIC id, vector."""
    assert park_code.wake_up(0x102, 0x9A000) == struct.pack("<HHIQ", 1, 0, 0x102, 0x9A000)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.kernel import memory
from kupgrade.kernel.memory import Memmap, MemmapKind
from kupgrade.model.kernel import CommandLine

IOMEM = """\
00000000-00000fff : Reserved
40000000-5fffffff : Persistent Memory (legacy)
  40000000-5fffffff : namespace0.0
60000000-7fffffff : System RAM
"""


def test_legacy_pmem_is_found_in_iomem(put, tmp_path):
    """Only the range itself counts, not the namespace inside it."""
    put("proc/iomem", IOMEM)
    (found,) = memory.legacy_pmem(memory.iomem(tmp_path) or ())
    assert (found.start, found.size) == (0x40000000, 512 << 20)


def test_hidden_addresses_are_unknown(put, tmp_path):
    """Without CAP_SYS_ADMIN all addresses read as 0: that is no map of the memory."""
    put("proc/iomem", "00000000-00000000 : System RAM\n")
    assert memory.iomem(tmp_path) is None


def test_an_iomem_of_another_shape_is_refused():
    """A line that cannot be read is not skipped: it might be the range in question."""
    with pytest.raises(BadInputError):
        memory.parse_iomem("garbage\n")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("512M!1G", [(MemmapKind.PMEM, 1 << 30, 512 << 20)]),
        ("0x10000$0xfee0000", [(MemmapKind.RESERVED, 0xFEE0000, 65536)]),
        ("64K#256M,1G@2G", [(MemmapKind.ACPI, 256 << 20, 65536), (MemmapKind.RAM, 2 << 30, 1 << 30)]),
        ("exactmap", []),
        ("nonsense!", []),
    ],
)
def test_memmap_is_parsed_as_the_kernel_does(value, found):
    """Kinds, suffixes, hex and lists."""
    parsed = memory.parse_memmap(CommandLine.parse(f"quiet memmap={value}"))
    assert [(m.kind, m.start, m.size) for m in parsed] == found


@given(st.sampled_from(MemmapKind), st.integers(0, 1 << 50), st.integers(1, 1 << 45))
def test_memmap_round_trip(kind, start, size):
    """What is printed is parsed to the same range."""
    one = Memmap(kind, start, size)
    assert memory.parse_memmap(CommandLine.parse(f"memmap={one}")) == (one,)


def test_pmem_devices_are_read_from_sysfs(put, tmp_path):
    """Sectors become bytes; attributes that are missing are unknown."""
    put("sys/block/pmem0/size", "1048576\n")
    put("sys/block/pmem0/device/mode", "raw\n")
    put("sys/block/pmem0/device/resource", "0x40000000\n")
    put("sys/block/pmem0/queue/dax", "1\n")
    put("sys/block/pmem1/size", "8\n")
    first, second = memory.pmem_devices(tmp_path)
    assert first == memory.Pmem("pmem0", 512 << 20, "raw", True, 0x40000000)
    assert second == memory.Pmem("pmem1", 4096, "", False, None)

"""ACPI tables: what iasl and our own reader make of those we build, and how hostile ones are refused."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.kernel import acpi, acpi_devices, aml
from kupgrade.kernel.acpi import EcamRange
from kupgrade.model.machine import MemoryRange
from kupgrade.model.pci import BridgeWindow

ECAM = EcamRange(0xB0000000, 0, 0, 255)
WINDOWS = (
    BridgeWindow(MemoryRange(0xFE000000, 0x200000), prefetchable=False),
    BridgeWindow(MemoryRange(0x380000000000, 0x8000000), prefetchable=True),
)
TERMS = acpi_devices.soft_off() + acpi_devices.system_bus(
    acpi_devices.uart(2, 0x2F8),
    acpi_devices.host_bridge(0x10, ECAM, 1, 2, WINDOWS),
    acpi_devices.reserved_ecam(0x10, ECAM.slice(1, 2)),
    acpi_devices.reserved_ecam(0x11, MemoryRange(0x380010000000, 1 << 20)),
    *(acpi_devices.memory_device(number, [MemoryRange(number << 32, 1 << 27)]) for number in range(1, 65)),
)
AT = MemoryRange(0x140010000, 0x30000)
apic_ids = st.lists(st.integers(0, 2000), min_size=1, max_size=40, unique=True)


def all_tables(ids: list[int] | None = None) -> bytes:
    return acpi.tables(
        AT, ids or [2, 3, 0, 1], TERMS, [ECAM], registers=0x140008000, mailbox=0x140000000, reset_vector=0x140001000
    )


def table_at(whole: bytes, address: int) -> bytes:
    start = address - AT.start
    return whole[start : start + struct.unpack_from("<I", whole, start + 4)[0]]


def walk(whole: bytes) -> dict[bytes, bytes]:
    """Every table that can be reached from the RSDP, as a kernel would."""
    assert whole[:8] == b"RSD PTR "
    assert sum(whole[:20]) & 255 == sum(whole[:36]) & 255 == 0
    xsdt = table_at(whole, struct.unpack_from("<Q", whole, 24)[0])
    found = {b"XSDT": xsdt}
    for address in struct.unpack(f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:]):
        found[table_at(whole, address)[:4]] = table_at(whole, address)
    found[b"DSDT"] = table_at(whole, struct.unpack_from("<Q", found[b"FACP"], 140)[0])
    return found


def test_every_table_is_reached_and_sums_to_zero() -> None:
    """RSDP, XSDT, FADT, DSDT, MADT, MCFG."""
    found = walk(all_tables())
    assert set(found) == {b"XSDT", b"FACP", b"DSDT", b"APIC", b"MCFG"}
    assert all(sum(table) & 255 == 0 for table in found.values())


def test_the_fixed_table_leads_into_the_box() -> None:
    """Hardware-reduced, reset and sleep registers are bytes of memory, legacy devices are denied."""
    fadt = walk(all_tables())[b"FACP"]
    flags, boot = struct.unpack_from("<I", fadt, 112)[0], struct.unpack_from("<H", fadt, 109)[0]
    assert (len(fadt), flags >> 20 & 1, flags >> 10 & 1) == (276, 1, 1)
    assert boot & 0b11 == 0
    for offset, register in ((116, 0), (244, 1), (256, 2)):
        assert struct.unpack_from("<BBBBQ", fadt, offset) == (0, 8, 0, 1, 0x140008000 + register)


@given(apic_ids)
def test_the_processors_read_back(ids: list[int]) -> None:
    """All are there in order, behind one that does not exist; large IDs in x2APIC structures, UIDs all different."""
    data = acpi.madt(ids, 0x140000000, 0x140001000)
    madt = acpi.parse_madt(data)
    assert [cpu.apic_id for cpu in madt.cpus[1:]] == ids
    assert madt.cpus[0].apic_id not in ids
    assert madt.cpus[0].apic_id < 0xFF
    assert (madt.mailbox, madt.reset_vector) == (0x140000000, 0x140001000)
    uids = []
    at = 44
    while at < len(data):
        if data[at] == 0:
            assert data[at + 3] < 0xFF
            uids.append(data[at + 2])
        elif data[at] == 9:
            assert struct.unpack_from("<I", data, at + 4)[0] >= 0xFF
            uids.append(struct.unpack_from("<I", data, at + 12)[0])
        at += data[at + 1]
    assert len(set(uids)) == len(ids) + 1


def test_all_small_ids_fit_beside_the_placeholder() -> None:
    """254 CPUs with IDs below 255: the UID of a local APIC structure has one byte."""
    assert len(acpi.parse_madt(acpi.madt([*range(253), 254], 0, 0)).cpus) == 255
    with pytest.raises(BadInputError):
        acpi.madt([*range(255)], 0, 0)


@pytest.mark.parametrize("ids", [[1, 1], [-1], [0xFFFFFFFF]])
def test_impossible_apic_ids_are_refused(ids: list[int]) -> None:
    """Doubles, negatives and the broadcast ID."""
    with pytest.raises(BadInputError):
        acpi.madt(ids, 0, 0)


def test_tables_that_do_not_fit_are_refused() -> None:
    """Nothing is written over what lies behind."""
    with pytest.raises(BadInputError, match="do not fit"):
        acpi.tables(MemoryRange(AT.start, 4096), [0], TERMS, [ECAM], registers=0, mailbox=0, reset_vector=0)


@given(st.lists(st.builds(EcamRange, st.integers(0, 1 << 45), st.integers(0, 65535), st.just(3), st.integers(3, 255))))
def test_configuration_space_reads_back(ranges: list[EcamRange]) -> None:
    """Any number of ranges."""
    assert acpi.parse_mcfg(acpi.mcfg(ranges)) == tuple(ranges)


def test_a_slice_of_configuration_space() -> None:
    """One MiB for each bus; buses that are not there are refused."""
    assert ECAM.slice(1, 2) == MemoryRange(0xB0100000, 2 << 20)
    with pytest.raises(BadInputError):
        EcamRange(0, 0, 4, 8).slice(3, 5)


def test_a_real_kind_of_madt_is_read() -> None:
    """IOAPICs, disabled and online-capable processors; interrupt overrides and NMIs are passed over."""
    body = struct.pack("<II", 0xFEE00000, 1)
    body += struct.pack("<BBBBI", 0, 8, 0, 0, 1) + struct.pack("<BBBBI", 0, 8, 1, 0xFF, 0)
    body += struct.pack("<BBHIII", 9, 16, 0, 300, 2, 7)
    body += struct.pack("<BBBBII", 1, 12, 8, 0, 0xFEC00000, 0) + struct.pack("<BBBBII", 1, 12, 9, 0, 0xFEC01000, 24)
    body += struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0xF) + struct.pack("<BBBHB", 4, 6, 0xFF, 5, 1)
    madt = acpi.parse_madt(acpi.table(b"APIC", 5, body))
    assert [(c.apic_id, c.enabled, c.online_capable) for c in madt.cpus] == [
        (0, True, False),
        (255, False, False),
        (300, False, True),
    ]
    assert [(i.number, i.address, i.gsi_base) for i in madt.io_apics] == [(8, 0xFEC00000, 0), (9, 0xFEC01000, 24)]
    assert madt.mailbox is None


@pytest.mark.parametrize(
    "structure",
    [
        b"\0",
        b"\0\x01",
        b"\x05\x01\x0c" + bytes(10),
        b"\0\0",
        b"\0\x07\0\0\0\0\0",
        b"\x01\x0b" + bytes(9),
        b"\x09\x08" + bytes(6),
        b"\x10\x20\0",
    ],
)
def test_damaged_structures_are_refused(structure: bytes) -> None:
    """Length 0 would never end; short ones would be read beyond their end."""
    with pytest.raises(BadInputError):
        acpi.parse_madt(acpi.table(b"APIC", 5, bytes(8) + structure))


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_are_read_or_refused(data: bytes, with_header: bool) -> None:
    """No input makes the readers fail in another way."""
    for signature, read in ((b"APIC", acpi.parse_madt), (b"MCFG", acpi.parse_mcfg)):
        try:
            read(acpi.table(signature, 1, data) if with_header else data)
        except BadInputError:
            pass


@given(st.integers(0, 115))
def test_truncated_tables_are_refused(length: int) -> None:
    """Wherever it was cut."""
    with pytest.raises(BadInputError):
        acpi.parse_madt(acpi.madt([0, 1, 2, 300], 0, 0)[:length])


@given(st.integers(0, 115), st.integers(1, 255))
def test_one_changed_byte_is_noticed(at: int, change: int) -> None:
    """By the checksum at the latest."""
    data = bytearray(acpi.madt([0, 1, 2, 300], 0, 0))
    data[at] = (data[at] + change) % 256
    with pytest.raises(BadInputError):
        acpi.parse_madt(bytes(data))


def test_this_hosts_tables_are_read_from_sysfs(tmp_path: Path) -> None:
    """None where there is no such table."""
    assert acpi.host_madt(tmp_path) is None
    assert acpi.host_mcfg(tmp_path) is None
    folder = tmp_path / "sys/firmware/acpi/tables"
    folder.mkdir(parents=True)
    (folder / "APIC").write_bytes(acpi.madt([5], 0, 0))
    (folder / "MCFG").write_bytes(acpi.mcfg([ECAM]))
    assert acpi.host_madt(tmp_path).cpus[-1].apic_id == 5
    assert acpi.host_mcfg(tmp_path) == (ECAM,)


@pytest.mark.parametrize(
    "build",
    [
        lambda: acpi_devices.uart(4096, 0x2F8),
        lambda: acpi_devices.host_bridge(1, EcamRange(0, 0, 0, 3), 3, 4, ()),
        lambda: acpi.table(b"TOOLONG", 1, b""),
        lambda: EcamRange(0, 0, 5, 4),
    ],
)
def test_devices_and_tables_that_make_no_sense_are_refused(build) -> None:
    """Numbers that would give two devices one name, buses outside of their configuration space."""
    with pytest.raises(BadInputError):
        build()


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
@pytest.mark.parametrize("name", ["XSDT", "FACP", "APIC", "MCFG", "DSDT", "SSDT"])
def test_iasl_reads_each_table(name: str, tmp_path: Path) -> None:
    """The reference implementation's disassembler finds no fault, and what was meant."""
    tables = {key.decode(): value for key, value in walk(all_tables([0, 1, 2, 300])).items()}
    tables["SSDT"] = acpi.ssdt(acpi_devices.system_bus(acpi_devices.memory_device(3, [MemoryRange(1 << 40, 1 << 27)])))
    path = tmp_path / f"{name.lower()}.dat"
    path.write_bytes(tables[name])
    done = subprocess.run(["iasl", "-d", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    listing = path.with_suffix(".dsl").read_text()
    for line in (done.stdout + done.stderr + listing).lower().splitlines():
        # The Multiprocessor Wakeup structure came with ACPI 6.4; iasl knows it from 2021 on.
        if "unknown madt subtable type 0x10" not in line:
            assert not any(word in line for word in ("****", "incorrect checksum", "error ", "warning ")), line
    expected = {
        "DSDT": ['EisaId ("PNP0A08")', "_CBA, 0xB0000000", "0x0000380007FFFFFF", "_STA, 0x0F", "Memory32Fixed"],
        "SSDT": ['EisaId ("PNP0C80")', "0x0000010007FFFFFF"],
        "FACP": ["Hardware Reduced (V5) : 1"],
        "APIC": ["Processor x2Apic ID : 0000012C", "Local Apic ID : FD"],
        "MCFG": ["Base Address : 00000000B0000000"],
    }
    for text in expected.get(name, []):
        assert text in listing


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
def test_iasl_compiles_its_own_listing_to_the_same_bytes(tmp_path: Path) -> None:
    """Every length and opcode is the one that the reference compiler chooses."""
    original = tmp_path / "dsdt.dat"
    original.write_bytes(acpi.table(b"DSDT", 2, TERMS))
    subprocess.run(["iasl", "-d", str(original)], capture_output=True, check=True)
    subprocess.run(["iasl", "-oa", "-p", "again", "dsdt.dsl"], cwd=tmp_path, capture_output=True, check=True)
    again = (tmp_path / "again.aml").read_bytes()
    assert again[36:] == TERMS


def test_a_name_has_one_place() -> None:
    """Devices stand in the system bus's scope: the only one that is searched."""
    assert acpi_devices.system_bus(b"\0").startswith(b"\x10")
    assert acpi_devices.soft_off() == aml.name("\\_S5", aml.package(b"\x0a\x05", b"\0", b"\0", b"\0"))

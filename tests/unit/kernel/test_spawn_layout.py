"""All parts of a spawned kernel's start put together: what each says of the others is true."""

from __future__ import annotations

import struct

import pytest

from kupgrade.core import box
from kupgrade.core.box import GIB, LOW_SLICES, MIB, Box, BoxNeeds
from kupgrade.kernel import acpi, acpi_devices, bootparams, e820, pagetables
from kupgrade.kernel.acpi import EcamRange
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import MemoryType
from tests.unit.kernel.test_bootparams import a_bzimage

NEEDS = BoxNeeds(init_size=64 * MIB, initrd=24 * MIB + 5, root_image=512 * MIB, window=GIB)
UNUSED = EcamRange(0xB0000000, 0xEE, 255, 255)


class Memory:
    """Sparse physical memory: what was put where; nothing may be put twice."""

    def __init__(self) -> None:
        self.parts: dict[MemoryRange, bytes] = {}

    def put(self, address: int, data: bytes, room: int) -> None:
        assert 0 < len(data) <= room
        where = MemoryRange(address, len(data))
        assert not any(where.overlaps(other) for other in self.parts)
        self.parts[where] = data

    def read(self, address: int, size: int) -> bytes:
        (where,) = (each for each in self.parts if address in each)
        return self.parts[where][address - where.start :][:size]

    def table(self, address: int) -> bytes:
        return self.read(address, struct.unpack("<I", self.read(address + 4, 4))[0])


@pytest.mark.parametrize(
    ("start", "size", "cpus"),
    [(0x38000000, 2 * GIB, 4), (0x140000000, 4 * GIB, 64), ((1 << 45) - 2 * GIB, 64 * GIB, 600)],
)
def test_a_kernel_finds_its_way_from_the_registers_to_everything(start: int, size: int, cpus: int) -> None:
    """From CR3, RSI and RIP alone: page tables, zero page, command line, initrd, ACPI tables, mailbox."""
    ecam = UNUSED.slice(255, 255)
    made = box.layout(MemoryRange(start, size), NEEDS, LOW_SLICES[0], [ecam] if start > ecam.end else [])
    assert isinstance(made, Box)
    image = bootparams.parse(a_bzimage())
    memory = Memory()
    tables = pagetables.identity(made.page_tables.start, made.whole, made.page_tables.size)
    memory.put(made.page_tables.start, tables, made.page_tables.size)
    memory.put(made.kernel.start, bytes(image.body), made.kernel.size)
    cmdline = bootparams.cmdline_bytes(image, "quiet " * 300)
    memory.put(made.cmdline.start, cmdline, made.cmdline.size)
    seed = bootparams.setup_data(bootparams.SetupData.RNG_SEED, bytes(32))
    memory.put(made.setup_data.start, seed, made.setup_data.size)
    devices = acpi_devices.system_bus(acpi_devices.uart(2, 0x2F8), acpi_devices.reserved_ecam(0xEE, ecam))
    whole = acpi.tables(
        made.acpi,
        range(0, 2 * cpus, 2),
        acpi_devices.soft_off() + devices,
        [UNUSED],
        registers=made.registers,
        mailbox=made.mailbox,
        reset_vector=made.park.start,
    )
    memory.put(made.acpi.start, whole, made.acpi.size)
    page = bootparams.zero_page(
        image,
        load_address=made.kernel.start,
        cmdline=made.cmdline.start,
        rsdp=made.acpi.start,
        memory_map=made.memory_map,
        initrd=made.initrd,
        first_setup_data=made.setup_data.start,
    )
    memory.put(made.zero_page, page, 4096)

    for address in (
        made.entry,
        made.zero_page,
        made.cmdline.start,
        made.park.start,
        made.low.start,
        made.whole.end - 1,
    ):
        assert pagetables.translate(tables, made.page_tables.start, address) == address
    found = memory.read(made.zero_page, 4096)
    assert memory.read(made.entry, 4) == bytes(image.body)[0x200:0x204]
    low, high = struct.unpack_from("<I", found, 0x228)[0], struct.unpack_from("<I", found, 0xC8)[0]
    assert memory.read(low | high << 32, len(cmdline)) == cmdline
    assert memory.read(struct.unpack_from("<Q", found, 0x250)[0], 12)[8:] == struct.pack("<I", 9)
    xsdt = memory.table(struct.unpack("<8xQ4x", memory.read(struct.unpack_from("<Q", found, 0x70)[0] + 16, 20))[0])
    listed = {t[:4]: t for t in map(memory.table, struct.unpack(f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:]))}
    madt = acpi.parse_madt(listed[b"APIC"])
    assert (madt.mailbox, madt.reset_vector, len(madt.cpus)) == (made.mailbox, made.park.start, cpus + 1)
    assert memory.table(struct.unpack_from("<Q", listed[b"FACP"], 140)[0])[:4] == b"DSDT"
    map_ = e820.decode(found[0x2D0 : 0x2D0 + 20 * found[0x1E8]])
    ram = [each.range for each in map_ if each.type is MemoryType.RAM]
    assert ram == sorted([made.low, made.ram])
    assert not any(each.overlaps(made.window) for each in ram)
    assert all(
        any(each.range.overlaps(part) and each.type is not MemoryType.RAM for each in map_)
        for part in (made.park, made.acpi, made.page_tables)
    )

"""ACPI tables: those a spawned kernel is given instead of the firmware's, and those of this host that matter to it.

The spawned kernel is told of a hardware-reduced machine: no PIC, PIT, IOAPIC, HPET, PM timer, i8042, so it leaves
alone what the old kernel still drives. CPUs are started through the Multiprocessor Wakeup mailbox, never by INIT.

Sources: ACPI 6.5 sections 5.2.5 (RSDP), 5.2.6 (header), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.12 (MADT); ACPI 6.6 section
5.2.12.19 (Multiprocessor Wakeup, version 1 with a reset vector); PCI Firmware Specification 3.3 section 4.1.2 (MCFG).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel.libc import reported
from kupgrade.model.machine import MemoryRange

HEADER = 36  # bytes before a table's own fields
OEM_ID, OEM_TABLE_ID, CREATOR = b"KUPGRD", b"KUPGRADE", b"KUPG"
LOCAL_APIC_BASE = 0xFEE00000
ECAM_BUS = 1 << 20  # bytes of configuration space for one bus

# The three firmware registers in the box, one byte each, from its `registers` address on.
RESET_REGISTER, SLEEP_CONTROL, SLEEP_STATUS = 0, 1, 2
RESET_VALUE = 1  # what a spawned kernel writes into the reset register when it wants the machine reset

# FADT, table 5.9 (boot architecture) and 5.10 (fixed feature flags)
_NO_VGA, _NO_ASPM, _NO_RTC = 1 << 2, 1 << 4, 1 << 5
_WBINVD, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _RESET_SUPPORTED, _HW_REDUCED = 1, 1 << 4, 1 << 5, 1 << 10, 1 << 20
_ENTERPRISE_SERVER = 4

# MADT, table 5.19: type and length of the structures
_LOCAL_APIC, _IO_APIC, _LOCAL_X2APIC, _MP_WAKEUP = (0, 8), (1, 12), (9, 16), (16, 24)
_ENABLED, _ONLINE_CAPABLE = 1, 2


@dataclass(frozen=True, slots=True)
class EcamRange:
    """Memory-mapped configuration space of buses `first` to `last`; `base` is where bus 0 would be."""

    base: int
    segment: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if not (0 <= self.first <= self.last <= 255 and 0 <= self.segment <= 0xFFFF and self.base >= 0):
            raise BadInputError("A range of PCI configuration space makes no sense", f"{self}")

    def slice(self, first: int, last: int) -> MemoryRange:
        """Where the configuration space of buses `first` to `last` lies. Raises BadInputError when it is not here."""
        if not self.first <= first <= last <= self.last:
            raise BadInputError(f"Buses {first} to {last} are not in the configuration space of {self}")
        return MemoryRange(self.base + first * ECAM_BUS, (last - first + 1) * ECAM_BUS)


@dataclass(frozen=True, slots=True)
class MadtCpu:
    """A processor of the MADT; `online_capable`: not enabled now but may be later."""

    apic_id: int
    enabled: bool
    online_capable: bool


@dataclass(frozen=True, slots=True)
class IoApic:
    """An I/O APIC: its ID, its registers' physical address, its first global system interrupt."""

    number: int
    address: int
    gsi_base: int


@dataclass(frozen=True, slots=True)
class Madt:
    """What the MADT says; `mailbox` and `reset_vector` of a Multiprocessor Wakeup structure, None without."""

    local_apic: int
    cpus: tuple[MadtCpu, ...]
    io_apics: tuple[IoApic, ...]
    mailbox: int | None = None
    reset_vector: int | None = None


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its header and checksum (section 5.2.6)."""
    if len(signature) != 4:
        raise BadInputError(f"{signature!r} is not the signature of an ACPI table")
    ids = (OEM_ID, OEM_TABLE_ID, 1, CREATOR, 1)
    whole = bytearray(struct.pack("<4sIBB6s8sI4sI", signature, HEADER + len(body), revision, 0, *ids) + body)
    whole[9] = -sum(whole) & 0xFF
    return bytes(whole)


def rsdp(xsdt_address: int) -> bytes:
    """The root pointer, revision 2, without an RSDT (section 5.2.5.3)."""
    whole = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, 36, xsdt_address, 0))
    whole[8] = -sum(whole[:20]) & 0xFF
    whole[32] = -sum(whole) & 0xFF
    return bytes(whole)


def xsdt(addresses: Sequence[int]) -> bytes:
    """The table of tables (section 5.2.8)."""
    return table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def _register(address: int) -> bytes:
    """A generic address structure: one byte of system memory, accessed as a byte (section 5.2.3.2)."""
    return struct.pack("<BBBBQ", 0, 8, 0, 1, address)


def fadt(dsdt_address: int, registers: int) -> bytes:
    """The fixed table of a hardware-reduced machine (section 5.2.9); `registers`: see RESET_REGISTER.

    The kernel writes there instead of resetting or switching off a machine that is not its own. No ASPM: it sees only
    one end of the links.
    """
    body = bytearray(276 - HEADER)
    for offset, form, value in (
        (45, "<B", _ENTERPRISE_SERVER),
        (109, "<H", _NO_VGA | _NO_ASPM | _NO_RTC),
        (112, "<I", _WBINVD | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _RESET_SUPPORTED | _HW_REDUCED),
        (116, "12s", _register(registers + RESET_REGISTER)),
        (128, "<B", RESET_VALUE),
        (131, "<B", 5),  # minor version: ACPI 6.5
        (140, "<Q", dsdt_address),
        (244, "12s", _register(registers + SLEEP_CONTROL)),
        (256, "12s", _register(registers + SLEEP_STATUS)),
    ):
        struct.pack_into(form, body, offset - HEADER, value)
    return table(b"FACP", 6, bytes(body))


def fake_apic_id(apic_ids: Sequence[int]) -> int:
    """An APIC ID that no CPU has, for the first entry of the MADT; see `madt`."""
    for candidate in range(0xFD, -1, -1):
        if candidate not in apic_ids:
            return candidate
    raise BadInputError("Every APIC ID below 254 is taken", "none is left for the placeholder of the BSP")


def madt(apic_ids: Sequence[int], mailbox: int, reset_vector: int) -> bytes:
    """The processors a spawned kernel may ever run on, and how it starts them (section 5.2.12).

    Linux takes the first entry for the real BSP. Where the booting CPU is itself first and lacks the BSP bit, it
    assumes a crash kernel and keeps to one CPU; so the first entry is one that does not exist. IDs from 255 on need
    x2APIC structures, smaller ones must not have them beside local APIC structures. Raises BadInputError.
    """
    if len(set(apic_ids)) != len(apic_ids) or any(not 0 <= each < 0xFFFFFFFF for each in apic_ids):
        raise BadInputError("The APIC IDs for a MADT make no sense", f"{list(apic_ids)}"[:200])
    body = struct.pack("<II", LOCAL_APIC_BASE, 0)
    everybody = (fake_apic_id(apic_ids), *apic_ids)
    small = [each for each in everybody if each < 0xFF]
    for each in everybody:
        if each < 0xFF:
            body += struct.pack("<BBBBI", *_LOCAL_APIC, small.index(each), each, _ENABLED)
        else:
            uid = len(small) + everybody.index(each)
            body += struct.pack("<BBHIII", *_LOCAL_X2APIC, 0, each, _ENABLED, uid)
    body += struct.pack("<BBHIQQ", *_MP_WAKEUP, 1, 0, mailbox, reset_vector)
    return table(b"APIC", 5, body)


def mcfg(ranges: Sequence[EcamRange]) -> bytes:
    """Where PCI configuration space is (PCI Firmware Specification 3.3, section 4.1.2)."""
    entries = (struct.pack("<QHBBI", each.base, each.segment, each.first, each.last, 0) for each in ranges)
    return table(b"MCFG", 1, bytes(8) + b"".join(entries))


def ssdt(terms: bytes) -> bytes:
    """A secondary description table of these AML terms, to be loaded at run time (section 5.2.11.2)."""
    return table(b"SSDT", 2, terms)


def tables(
    at: MemoryRange,
    apic_ids: Sequence[int],
    dsdt_terms: bytes,
    ecam: Sequence[EcamRange],
    *,
    registers: int,
    mailbox: int,
    reset_vector: int,
) -> bytes:
    """All tables of a spawned kernel, to be put at `at.start`; the RSDP comes first.

    Without any PCI configuration space Linux registers neither reserved nor persistent memory ranges
    (pcibios_init ends early): give at least one unused bus. Raises BadInputError when they are longer than `at`.
    """
    whole = bytearray(64)

    def add(one: bytes) -> int:
        whole.extend(bytes(-len(whole) % 64))
        address = at.start + len(whole)
        whole.extend(one)
        return address

    listed = [fadt(add(table(b"DSDT", 2, dsdt_terms)), registers), madt(apic_ids, mailbox, reset_vector)]
    if ecam:
        listed.append(mcfg(ecam))
    whole[:HEADER] = rsdp(add(xsdt([add(one) for one in listed])))
    if len(whole) > at.size:
        raise BadInputError("The ACPI tables do not fit into their place", f"{len(whole)} of {at.size} bytes")
    return bytes(whole)


def _body(data: bytes, signature: bytes) -> bytes:
    """What follows the header of a whole table. Raises BadInputError."""
    what = f"The ACPI table {signature.decode()}"
    if len(data) < HEADER or data[:4] != signature:
        raise BadInputError(f"{what} cannot be read", f"{len(data)} bytes begin with {bytes(data[:4])!r}")
    length = struct.unpack_from("<I", data, 4)[0]
    if not HEADER <= length <= len(data):
        raise BadInputError(f"{what} is truncated", f"it says {length} bytes and has {len(data)}")
    if sum(data[:length]) & 0xFF:
        raise BadInputError(f"{what} is damaged", "its checksum is wrong")
    return data[HEADER:length]


def _structures(body: bytes, start: int) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Each structure of a MADT with its type and length. Raises BadInputError."""
    while start < len(body):
        rest = body[start:]
        if len(rest) < 2 or not 2 <= rest[1] <= len(rest):
            raise BadInputError("The MADT is damaged", f"the structure at offset {start + HEADER} does not fit")
        yield (rest[0], rest[1]), rest[: rest[1]]
        start += rest[1]


def parse_madt(data: bytes) -> Madt:
    """Read a MADT; structures of other types are left out. Raises BadInputError when damaged or truncated."""
    body = _body(data, b"APIC")
    if len(body) < 8:
        raise BadInputError("The MADT is truncated", f"{len(data)} bytes")
    cpus: list[MadtCpu] = []
    io_apics: list[IoApic] = []
    mailbox: int | None = None
    reset_vector: int | None = None
    for kind, raw in _structures(body, 8):
        if kind == _LOCAL_APIC:
            apic_id, flags = struct.unpack_from("<3xBI", raw)
            cpus.append(MadtCpu(apic_id, bool(flags & _ENABLED), bool(flags & _ONLINE_CAPABLE)))
        elif kind == _LOCAL_X2APIC:
            apic_id, flags = struct.unpack_from("<4xII", raw)
            cpus.append(MadtCpu(apic_id, bool(flags & _ENABLED), bool(flags & _ONLINE_CAPABLE)))
        elif kind == _IO_APIC:
            io_apics.append(IoApic(*struct.unpack_from("<2xBxII", raw)))
        elif kind[0] == _MP_WAKEUP[0] and kind[1] >= 16:
            mailbox = struct.unpack_from("<8xQ", raw)[0]
            reset_vector = struct.unpack_from("<16xQ", raw)[0] if kind[1] >= 24 else None
        elif kind[0] in (_LOCAL_APIC[0], _LOCAL_X2APIC[0], _IO_APIC[0], _MP_WAKEUP[0]):
            raise BadInputError("The MADT is damaged", f"a structure of type {kind[0]} has {kind[1]} bytes")
    return Madt(struct.unpack_from("<I", body)[0], tuple(cpus), tuple(io_apics), mailbox, reset_vector)


def parse_mcfg(data: bytes) -> tuple[EcamRange, ...]:
    """Read an MCFG. Raises BadInputError when damaged or truncated."""
    body = _body(data, b"MCFG")
    if len(body) < 8 or (len(body) - 8) % 16:
        raise BadInputError("The MCFG is truncated", f"{len(data)} bytes")
    return tuple(EcamRange(*struct.unpack_from("<QHBB", body, at)) for at in range(8, len(body), 16))


def _host_table(name: str, root: Path) -> bytes | None:
    path = root / "sys/firmware/acpi/tables" / name
    try:
        with reported("read", path):
            return path.read_bytes()
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def host_madt(root: Path = Path("/")) -> Madt | None:
    """This machine's MADT; None when it has none. Raises KernelError (EACCES: root's alone) and BadInputError."""
    data = _host_table("APIC", root)
    return None if data is None else parse_madt(data)


def host_mcfg(root: Path = Path("/")) -> tuple[EcamRange, ...] | None:
    """This machine's memory-mapped configuration space; None without. Raises KernelError and BadInputError."""
    data = _host_table("MCFG", root)
    return None if data is None else parse_mcfg(data)

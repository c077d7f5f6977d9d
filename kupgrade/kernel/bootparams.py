"""The zero page (struct boot_params) for entering a bzImage at its 64-bit entry point, on bytes only.

Sources: Documentation/arch/x86/boot.rst ("64-bit Boot Protocol"), Documentation/arch/x86/zero-page.rst,
arch/x86/include/uapi/asm/bootparam.h. Everything that is not set here stays zero: screen_info above all, so that the
kernel drives no display that is not its own.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kupgrade.errors import BadInputError
from kupgrade.kernel import e820
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import MapEntry

ZERO_PAGE_SIZE = 4096
ENTRY_64 = 0x200  # from the load address of the protected-mode part

XLF_KERNEL_64, XLF_CAN_BE_LOADED_ABOVE_4G = 1, 2
OLDEST_PROTOCOL = 0x20C  # xloadflags and the ext_ fields

# Offsets in the zero page; those from 0x1f1 on also in the bzImage
_RSDP, _EXT_INITRD, _EXT_INITRD_SIZE, _EXT_CMDLINE, _E820_COUNT = 0x070, 0x0C0, 0x0C4, 0x0C8, 0x1E8
_SETUP_SECTS, _SYSSIZE, _VID_MODE, _BOOT_FLAG, _JUMP, _MAGIC, _VERSION = 0x1F1, 0x1F4, 0x1FA, 0x1FE, 0x201, 0x202, 0x206
_LOADER, _CODE32, _INITRD, _INITRD_SIZE, _CMDLINE = 0x210, 0x214, 0x218, 0x21C, 0x228
_ALIGNMENT, _RELOCATABLE, _XLOADFLAGS, _CMDLINE_SIZE = 0x230, 0x234, 0x236, 0x238
_SETUP_DATA, _PREF_ADDRESS, _INIT_SIZE, _E820 = 0x250, 0x258, 0x260, 0x2D0
_HEADER_START, _HEADER_LIMIT = 0x1F1, 0x290  # the setup header may not reach edd_mbr_sig_buffer

_VGA_NORMAL, _LOADER_UNDEFINED = 0xFFFF, 0xFF


class SetupData(enum.IntEnum):
    """Types of setup_data (arch/x86/include/uapi/asm/setup_data.h) that make sense here."""

    RNG_SEED = 9


@dataclass(frozen=True, slots=True)
class BzImage:
    """What of a bzImage is needed to enter it: `header` as it goes into the zero page, `body` as it goes to memory.

    `init_size`: bytes of contiguous RAM it needs from its load address on. `alignment`: of that address.
    `cmdline_limit`: bytes without the NUL. `protocol`: e.g. 0x20f for 2.15.
    """

    protocol: int
    xloadflags: int
    init_size: int
    alignment: int
    preferred: int
    cmdline_limit: int
    header: bytes
    body: memoryview


def _bad(why: str) -> BadInputError:
    return BadInputError("The kernel image cannot be entered at its 64-bit entry point", why, "Use an x86-64 bzImage")


def parse(image: bytes) -> BzImage:
    """Read a bzImage; `body` is a view of `image`, not a copy. Raises BadInputError, naming what is missing."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS" or image[_BOOT_FLAG : _BOOT_FLAG + 2] != b"\x55\xaa":
        raise _bad("it has no setup header (HdrS at offset 0x202)")
    end = _MAGIC + image[_JUMP]
    if len(image) < _HEADER_LIMIT or not _INIT_SIZE + 4 <= end <= _HEADER_LIMIT:
        raise _bad(f"its setup header ends at {end:#x}")
    protocol = struct.unpack_from("<H", image, _VERSION)[0]
    if protocol < OLDEST_PROTOCOL:
        raise _bad(f"its boot protocol {protocol >> 8}.{protocol & 255:02} is older than 2.12")
    flags = struct.unpack_from("<H", image, _XLOADFLAGS)[0]
    if not flags & XLF_KERNEL_64:
        raise _bad("it has no 64-bit entry point (XLF_KERNEL_64)")
    if not flags & XLF_CAN_BE_LOADED_ABOVE_4G or not image[_RELOCATABLE]:
        raise _bad("it cannot be loaded at any address (XLF_CAN_BE_LOADED_ABOVE_4G, relocatable_kernel)")
    start = ((image[_SETUP_SECTS] or 4) + 1) * 512
    length = struct.unpack_from("<I", image, _SYSSIZE)[0] * 16
    if length <= ENTRY_64 or start + length > len(image):
        raise _bad(f"it is truncated: {len(image)} bytes, its header says {start + length}")
    alignment = struct.unpack_from("<I", image, _ALIGNMENT)[0]
    init_size = struct.unpack_from("<I", image, _INIT_SIZE)[0]
    if alignment == 0 or alignment & alignment - 1 or init_size < length:
        raise _bad(f"its alignment {alignment:#x} or its init_size {init_size:#x} makes no sense")
    return BzImage(
        protocol=protocol,
        xloadflags=flags,
        init_size=init_size,
        alignment=alignment,
        preferred=struct.unpack_from("<Q", image, _PREF_ADDRESS)[0],
        cmdline_limit=struct.unpack_from("<I", image, _CMDLINE_SIZE)[0],
        header=bytes(image[_HEADER_START:end]),
        body=memoryview(image)[start : start + length],
    )


def setup_data(kind: SetupData, payload: bytes, following: int = 0) -> bytes:
    """One node of the setup_data list; `following`: the physical address of the next node, 0 for none."""
    return struct.pack("<QII", following, kind, len(payload)) + payload


def cmdline_bytes(image: BzImage, cmdline: str) -> bytes:
    """The command line with its NUL. Raises BadInputError when it is too long or not for a kernel."""
    try:
        encoded = cmdline.encode("ascii")
    except UnicodeEncodeError as error:
        why = f"{cmdline[error.start : error.start + 20]!r}"
        raise BadInputError("The kernel command line is not ASCII", why) from error
    if b"\0" in encoded:
        raise BadInputError("The kernel command line holds a NUL byte", "the kernel stops reading there")
    if len(encoded) > image.cmdline_limit:
        why = f"{len(encoded)} bytes, this kernel takes {image.cmdline_limit}"
        raise BadInputError("The kernel command line is too long", why)
    return encoded + b"\0"


def zero_page(
    image: BzImage,
    *,
    load_address: int,
    cmdline: int,
    rsdp: int,
    memory_map: Sequence[MapEntry],
    initrd: MemoryRange | None = None,
    first_setup_data: int = 0,
) -> bytes:
    """The 4096 bytes that RSI points to at the entry; all addresses are physical.

    Raises BadInputError for a load address that is not aligned and a memory map that cannot be passed on.
    """
    if load_address % image.alignment:
        why = f"its addresses are multiples of {image.alignment:#x}"
        raise BadInputError(f"The kernel cannot be loaded at {load_address:#x}", why)
    page = bytearray(ZERO_PAGE_SIZE)
    page[_HEADER_START : _HEADER_START + len(image.header)] = image.header
    initrd_start, initrd_size = (initrd.start, initrd.size) if initrd else (0, 0)
    table = e820.encode(memory_map)
    low = 0xFFFFFFFF
    for form, offset, value in (
        ("<Q", _RSDP, rsdp),
        ("<I", _EXT_INITRD, initrd_start >> 32),
        ("<I", _EXT_INITRD_SIZE, initrd_size >> 32),
        ("<I", _EXT_CMDLINE, cmdline >> 32),
        ("<B", _E820_COUNT, len(memory_map)),
        ("<H", _VID_MODE, _VGA_NORMAL),
        ("<B", _LOADER, _LOADER_UNDEFINED),
        ("<I", _CODE32, load_address & low),  # not used by the 64-bit entry
        ("<I", _INITRD, initrd_start & low),
        ("<I", _INITRD_SIZE, initrd_size & low),
        ("<I", _CMDLINE, cmdline & low),
        ("<Q", _SETUP_DATA, first_setup_data),
    ):
        struct.pack_into(form, page, offset, value)
    page[_E820 : _E820 + len(table)] = table
    return bytes(page)

"""Reads a kernel image without booting it: what it is, whether it is whole, what it was built with.

Sources: Documentation/arch/x86/boot.rst, include/uapi/linux/pe.h, Documentation/arch/arm64/booting.rst,
Documentation/arch/riscv/boot-image-header.rst.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host.payload import LIMIT, unpack
from kupgrade.model.kernel import Compression, KernelImage, KernelRelease

XLF_KERNEL_64 = 0x1

OLDEST_PROTOCOL = 0x20C  # xloadflags; what kexec_file_load(2) needs (arch/x86/kernel/kexec-bzimage64.c)

# e_machine of ELF to uname -m
MACHINES = {
    3: "i386",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}

_BANNER = re.compile(rb"Linux version (\S+) \([^\n\0]{1,400}")
_ABI = re.compile(rb"([a-z]+-v[0-9]{1,3})\0")
_ABI_NAMES = (b"kho-v", b"luo-v", b"memfd-v")
_NOT_SET = re.compile(r"# (CONFIG_\w+) is not set")


@dataclass(frozen=True, slots=True)
class _Header:
    """The fields of the setup header that matter here; offsets in bytes from the start of the file."""

    protocol: int
    version: str
    relocatable: bool
    xloadflags: int
    cmdline_limit: int
    init_size: int
    declared_size: int
    payload: slice


def _bad(path: Path, why: str, remedy: str = "Fetch or build the kernel image again") -> BadInputError:
    return BadInputError(f"{path} is not a usable kernel image", why, remedy)


def _foreign(data: bytes) -> str:
    """What a file without the x86 setup header is, in words; each by its own magic number."""
    if data[:4] == b"\x7fELF" and len(data) >= 20:
        order = "<" if data[5] == 1 else ">"
        machine = struct.unpack_from(order + "H", data, 18)[0]
        return f"it is an ELF file (vmlinux) for {MACHINES.get(machine, f'machine {machine}')}, not a bzImage"
    if data[4:8] == b"zimg":
        return "it is an EFI zboot image (arm64, riscv or loongarch), not an x86 bzImage"
    if data[0x38:0x3C] == b"ARM\x64":
        return "it is an arm64 Image, not an x86 bzImage"
    if data[0x38:0x3C] == b"RSC\x05" or data[0x30:0x35] == b"RISCV":
        return "it is a riscv Image, not an x86 bzImage"
    if data[0x24:0x28] == b"\x18\x28\x6f\x01":
        return "it is an arm zImage, not an x86 bzImage"
    if data[:2] == b"\x1f\x8b":
        return "it is a gzip file, perhaps an Image.gz of another architecture"
    if data[:2] == b"MZ" and b".linux\0\0" in data[:4096]:
        return "it is a unified kernel image; extract its .linux and .initrd sections"
    if data[:6] in (b"070701", b"070702"):
        return "it is a cpio archive, perhaps an initrd"
    return "it has no setup header (HdrS at offset 0x202)"


def _header(path: Path, data: bytes) -> _Header:
    if data[0x202:0x206] != b"HdrS":
        raise _bad(path, "it is empty" if not data else _foreign(data), "Give an x86 bzImage (vmlinuz)")
    if len(data) < 0x268:
        raise _bad(path, "it ends inside the setup header")
    protocol, version_at = struct.unpack_from("<H6xH", data, 0x206)
    if protocol < OLDEST_PROTOCOL:
        why = f"its boot protocol {protocol >> 8}.{protocol & 255:02} is too old for kexec"
        raise _bad(path, why, "Use Linux 3.8 or later")
    setup = (data[0x1F1] or 4) * 512 + 512  # boot sector and setup sectors
    paragraphs = struct.unpack_from("<I", data, 0x1F4)[0]
    offset, length = struct.unpack_from("<II", data, 0x248)
    end = data.find(b"\0", 0x200 + version_at, setup)
    if version_at == 0 or end < 0:
        raise _bad(path, "its setup header names no kernel version")
    return _Header(
        protocol=protocol,
        version=data[0x200 + version_at : end].decode(errors="replace"),
        relocatable=bool(data[0x234]),
        xloadflags=struct.unpack_from("<H", data, 0x236)[0],
        cmdline_limit=struct.unpack_from("<I", data, 0x238)[0],
        init_size=struct.unpack_from("<I", data, 0x260)[0],
        declared_size=setup + paragraphs * 16,
        payload=slice(setup + offset, setup + offset + length),
    )


def _signed(path: Path, data: bytes) -> bool:
    """Whether a certificate table is attached (Authenticode). Raises BadInputError when it is cut off."""
    pe = struct.unpack_from("<I", data, 0x3C)[0]
    if data[:2] != b"MZ" or data[pe : pe + 4] != b"PE\0\0":
        return False  # built without the EFI stub
    optional = pe + 24
    magic = int.from_bytes(data[optional : optional + 2], "little")
    entry = optional + (112 if magic == 0x20B else 96) + 4 * 8  # the fifth data directory
    if entry + 8 > len(data):
        raise _bad(path, "it ends inside the PE header")
    start, size = struct.unpack_from("<II", data, entry)
    if start + size > len(data):
        raise _bad(path, "its signature is cut off")
    return bool(size)


def _payload(path: Path, data: bytes, header: _Header) -> tuple[Compression, bytes, str]:
    """Compression, content and why there is none."""
    packed = data[header.payload]
    if header.payload.stop > len(data) or len(packed) < 8:
        raise _bad(path, f"its payload should end at {header.payload.stop} bytes, the file has {len(data)}")
    unpacked = unpack(packed, 0, f"The payload of {path}")
    if unpacked.unread:
        return unpacked.compression, b"", unpacked.unread
    # The build appends the unpacked size (scripts/Makefile.lib, size_append); gzip ends with it anyway.
    declared = struct.unpack_from("<I", packed, len(packed) - 4)[0]
    if declared != len(unpacked.data):
        raise _bad(path, f"its payload unpacks to {len(unpacked.data)} bytes instead of {declared}")
    return unpacked.compression, unpacked.data, ""


def _elf(path: Path, vmlinux: bytes) -> tuple[str, str]:
    """Architecture and build ID of the payload."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import NoteSegment

    if vmlinux[:4] != b"\x7fELF":
        raise _bad(path, "its payload is not an ELF file")
    build_id = ""
    try:
        elf = ELFFile(io.BytesIO(vmlinux))
        machine = int(struct.unpack_from("<H", vmlinux, 18)[0])
        for segment in elf.iter_segments(type="PT_NOTE"):
            notes = segment.iter_notes() if isinstance(segment, NoteSegment) else ()
            for note in notes:
                if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
                    build_id = str(note["n_desc"])
    except (ELFError, struct.error, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _bad(path, f"the ELF file in its payload is damaged ({error})") from error
    return MACHINES.get(machine, f"machine {machine}"), build_id


def parse_config(text: str) -> dict[str, str]:
    """A .config file: CONFIG_X to y, m, n, a number or a string without its quotes."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith("CONFIG_"):
            found[name] = value[1:-1] if value.startswith('"') and value.endswith('"') else value
        elif match := _NOT_SET.fullmatch(line):
            found[match[1]] = "n"
    return found


def _embedded_config(vmlinux: bytes) -> Mapping[str, str] | None:
    """The configuration packed after IKCFG_ST (kernel/configs.c); None without CONFIG_IKCONFIG."""
    at = vmlinux.find(b"IKCFG_ST\x1f\x8b")
    if at < 0:
        return None
    try:
        return parse_config(zlib.decompressobj(31).decompress(vmlinux[at + 8 :], 16 << 20).decode())
    except (zlib.error, UnicodeDecodeError):
        return None  # the mark stood there by chance: the payload itself was found whole


def _handover_abi(vmlinux: bytes) -> tuple[str, ...]:
    """The strings by which two kernels tell whether they understand each other's KHO and LUO data.

    Each stands behind another string, or in a structure (struct liveupdate_file_handler) behind a kernel's pointer.
    """
    found = set()
    for name in _ABI_NAMES:
        at = vmlinux.find(name)  # much faster than one expression over the whole payload
        while at >= 0:
            if (match := _ABI.match(vmlinux, at)) and vmlinux[at - 1 : at] in (b"\0", b"\xff"):
                found.add(match[1].decode())
            at = vmlinux.find(name, at + 1)
    return tuple(sorted(found))


def contents(path: Path) -> bytes:
    """All bytes of a regular file; raises BadInputError.

    Nothing else is even opened: a pipe would be waited for, some devices never end, and a watchdog would be started.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise BadInputError(f"{path} is not a regular file", "", "Name a file")
        if info.st_size > LIMIT:
            raise BadInputError(f"{path} is too large for a kernel or an initrd", f"{info.st_size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path} cannot be read", error.strerror or str(error)) from error


def read(path: Path) -> KernelImage:
    """Read an x86 bzImage and check that it is whole.

    Raises BadInputError, naming what the file is instead or where it is damaged.
    """
    data = contents(path)
    header = _header(path, data)
    if header.declared_size > len(data):
        raise _bad(path, f"it is truncated: {len(data)} bytes, its header says {header.declared_size}")
    signed = _signed(path, data)
    compression, vmlinux, unread = _payload(path, data, header)
    release = KernelRelease(header.version.partition(" ")[0])
    architecture = "x86_64" if header.xloadflags & XLF_KERNEL_64 else "i386"
    banner, build_id, config = "", "", None
    abi: tuple[str, ...] = ()
    if not unread:
        architecture, build_id = _elf(path, vmlinux)
        found = _BANNER.search(vmlinux)
        if found is None or found[1].decode(errors="replace") != release.text:
            inside = found[1].decode(errors="replace") if found else "nothing"
            raise _bad(path, f"its header says {release}, its payload says {inside}")
        banner = found[0].decode(errors="replace")
        config = _embedded_config(vmlinux)
        abi = _handover_abi(vmlinux)
    return KernelImage(
        path=str(path),
        release=release,
        version=header.version,
        architecture=architecture,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        compression=compression,
        protocol=header.protocol,
        relocatable=header.relocatable,
        xloadflags=header.xloadflags,
        init_size=header.init_size,
        cmdline_limit=header.cmdline_limit,
        signed=signed,
        banner=banner,
        build_id=build_id,
        config=config,
        handover_abi=abi,
        unread=unread,
    )

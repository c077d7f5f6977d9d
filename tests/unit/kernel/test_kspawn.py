"""The binding against the header: sizes, offsets and request numbers as gcc sees them; errors as errno."""

from __future__ import annotations

import errno
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import kspawn

HEADER = Path(__file__).parents[3] / "kupgrade/kmod/uapi/kspawn.h"
STRUCTS = ("info", "start", "stop", "leave", "acpi", "pci", "panic_flag", "guard", "event")
REQUESTS = ("INFO", "START", "STOP", "LEAVE", "ACPI", "QUIESCE", "RESUME", "PANIC_FLAG", "GUARD")
VALUES = (
    *("ABI_VERSION", "NO_APIC_ID", "INFO_X2APIC", "INFO_LA57", "CAP_START", "CAP_LEAVE", "CAP_ACPI", "CAP_PCI"),
    *("CAP_PANIC_FLAG", "CAP_GUARD", "START_FOREIGN", "START_TIED", "START_OWN", "PCI_KEEP", "ACPI_MAX"),
    *("LEAVE_ALL", "GUARD_MIN_US", "GUARD_MAX_US"),
)


class Ioctls:
    """Records requests and arguments; fails with `error`, or answers with `answer`."""

    def __init__(self, error: int = 0, answer: bytes = b"") -> None:
        self.calls: list[tuple[int, bytes]] = []
        self.error, self.answer = error, answer

    def __call__(self, _fd: int, request: int, argument: bytes | bytearray) -> None:
        self.calls.append((request, bytes(argument)))
        if self.error:
            raise OSError(self.error, "")
        if isinstance(argument, bytearray):
            argument[:] = self.answer


def device(**kwargs) -> tuple[kspawn.Kspawn, Ioctls]:
    ioctls = Ioctls(**kwargs)
    return kspawn.Kspawn(99, Path("/dev/kspawn"), ioctls), ioctls


@pytest.fixture(scope="module")
def header(tmp_path_factory) -> dict[str, int]:
    """What the C compiler makes of the header: sizes, offsets, request numbers and constants by name."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    place = tmp_path_factory.mktemp("header")
    prints = [f'P("sizeof {s}", sizeof(struct kspawn_{s}));' for s in STRUCTS]
    prints += [f'P("{name}", KSPAWN_{name});' for name in VALUES]
    prints += [f'P("IOC_{name}", KSPAWN_{name});' for name in REQUESTS]
    for name in STRUCTS:
        body = re.search(rf"^struct kspawn_{name} {{\n(.*?)^}};", HEADER.read_text(), re.MULTILINE | re.DOTALL)[1]
        fields = [f for f in re.findall(r"(\w+)(?:\[\d+\])?;", body) if not f.startswith("reserved")]
        prints += [f'P("{name}.{f}", offsetof(struct kspawn_{name}, {f}));' for f in fields]
    program = '#include <stddef.h>\n#include <stdio.h>\n#include "kspawn.h"\n'
    program += '#define P(n, v) printf("%s=%llu\\n", n, (unsigned long long)(v))\n'
    program += "int main(void) {" + "\n".join(prints) + "return 0; }\n"
    (place / "sizes.c").write_text(program)
    command = ["gcc", "-Wall", "-Werror", "-I", HEADER.parent, "-o", place / "sizes", place / "sizes.c"]
    subprocess.run(command, check=True)
    lines = subprocess.run([place / "sizes"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: int(value) for name, value in (line.split("=") for line in lines)}


def test_structures_have_the_size_of_the_headers(header):
    """All of them, and every size is a multiple of eight."""
    for name in STRUCTS:
        assert getattr(kspawn, name.upper()).size == header[f"sizeof {name}"], name
        assert header[f"sizeof {name}"] % 8 == 0


def test_requests_and_constants_are_the_headers(header):
    """Numbers are not copied wrongly."""
    for name in (*VALUES, *(f"IOC_{request}" for request in REQUESTS)):
        assert getattr(kspawn, name) == header[name], name


@pytest.mark.parametrize("name", STRUCTS)
def test_members_lie_where_the_header_puts_them(header, name):
    """A number packed as the n-th value is found at the n-th member's offset."""
    packer = getattr(kspawn, name.upper())
    offsets = [value for key, value in header.items() if key.startswith(name + ".")]
    values = list(range(1, len(offsets) + 1))
    packed = packer.pack(*values)
    assert [packed[offset] for offset in offsets] == values
    assert sum(packed) == sum(values)  # and nothing anywhere else: reserved members are zero


def test_the_unknown_bootstrap_processor_is_none():
    """The header's KSPAWN_NO_APIC_ID does not leak out."""
    answer = kspawn.INFO.pack(1, 1, 0x3E, 0x10000, 0x5000, 2400000, 0xFFFFFFFF, 2, 1, 254, 0)
    opened, _ = device(answer=answer)
    info = opened.info()
    assert info.bsp_apic_id is None
    assert (info.trampoline, info.tsc_khz, info.boot_apic_id, info.max_apic_id) == (0x10000, 2400000, 2, 254)
    assert info.x2apic and not info.la57
    assert info.can(kspawn.CAP_LEAVE) and not info.can(kspawn.CAP_START)


def test_flags_follow_the_keywords():
    """START_FOREIGN, START_TIED, LEAVE_ALL and PCI_KEEP are set when asked for, only then."""
    opened, ioctls = device()
    entry = kspawn.Entry(0x1000, 0x2000, 0x3000)
    opened.start(3, entry)
    opened.start(3, entry, foreign=True, tied=True)
    opened.start(3, entry, own=True)
    opened.stop(3, foreign=True)
    opened.quiesce(kspawn.PciFunction(0, 4, 0x18), keep=True)
    assert [struct.unpack_from("<II", argument) for _, argument in ioctls.calls[:4]] == [(3, 0), (3, 3), (3, 4), (3, 1)]
    for everyone in (False, True):
        opened.leave(entry, everyone=everyone)
    left = [struct.unpack_from("<3QI", argument) for _, argument in ioctls.calls[5:]]
    assert left == [(0x1000, 0x2000, 0x3000, 0), (0x1000, 0x2000, 0x3000, 1)]
    assert struct.unpack_from("<IBBHI", ioctls.calls[4][1]) == (0, 4, 0x18, 0, 1)


def test_an_error_names_call_and_subject():
    """What the operator reads says which CPU or device."""
    opened, _ = device(error=errno.EBUSY)
    with pytest.raises(KernelError) as caught:
        opened.stop(7)
    assert (caught.value.call, caught.value.path, caught.value.errno) == ("KSPAWN_STOP", "APIC id 7", errno.EBUSY)
    with pytest.raises(KernelError) as caught:
        opened.resume(kspawn.PciFunction(0, 1, 0x0A))
    assert caught.value.path == "0000:01:01.2"


def test_without_the_module_opening_says_what_to_do(tmp_path):
    """ENOENT with a remedy."""
    with pytest.raises(KernelError) as caught:
        kspawn.open_device(tmp_path)
    assert caught.value.errno == errno.ENOENT
    assert "kspawn" in caught.value.remedy


def test_what_is_no_kspawn_is_closed_again(tmp_path):
    """A device that does not answer INFO is an error, not a handle."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kspawn").touch()
    with pytest.raises(KernelError) as caught:
        kspawn.open_device(tmp_path)
    assert caught.value.errno == errno.ENOTTY


def test_a_range_that_cannot_be_mapped_is_an_error_of_the_kernel():
    """Also where mmap refuses before it asks the kernel."""
    opened, _ = device()
    with pytest.raises(KernelError) as caught:
        opened.map(0x1001, 0x1000)
    assert caught.value.call == "mmap"

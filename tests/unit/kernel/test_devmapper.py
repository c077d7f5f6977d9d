"""The binding against the header: sizes, offsets and request numbers as gcc sees them; chains of targets; errno."""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import devmapper, loop
from kupgrade.kernel.devmapper import HEADER, TARGET, DeviceMapper, Segment

# Offsets of include/uapi/linux/dm-ioctl.h, in the order of the members.
FIELDS = {
    "version": 0,
    "data_size": 12,
    "data_start": 16,
    "target_count": 20,
    "open_count": 24,
    "flags": 28,
    "event_nr": 32,
    "padding": 36,
    "dev": 40,
    "name": 48,
    "uuid": 176,
    "data": 305,
}
SPEC_FIELDS = {"sector_start": 0, "length": 8, "status": 16, "next": 20, "target_type": 24}
REQUESTS = (
    *("DM_VERSION", "DM_DEV_CREATE", "DM_DEV_REMOVE", "DM_DEV_SUSPEND", "DM_DEV_STATUS"),
    *("DM_TABLE_LOAD", "DM_TABLE_STATUS"),
)
FLAGS = {
    "READONLY": "DM_READONLY_FLAG",
    "SUSPENDED": "DM_SUSPEND_FLAG",
    "STATUS_TABLE": "DM_STATUS_TABLE_FLAG",
    "ACTIVE_PRESENT": "DM_ACTIVE_PRESENT_FLAG",
    "BUFFER_FULL": "DM_BUFFER_FULL_FLAG",
    "NAME_LENGTH": "DM_NAME_LEN",
    "TYPE_LENGTH": "DM_MAX_TYPE_NAME",
}
LOOPS = ("LOOP_SET_FD", "LOOP_CLR_FD", "LOOP_CTL_GET_FREE")


def numbers(text: str, place: Path) -> dict[str, int]:
    program = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/dm-ioctl.h>\n#include <linux/loop.h>\n"
    program += '#include <sys/ioctl.h>\n#define P(n, v) printf("%s=%llu\\n", n, (unsigned long long)(v))\n'
    (place / "sizes.c").write_text(f"{program}int main(void) {{ {text} return 0; }}\n")
    subprocess.run(["gcc", "-Wall", "-o", place / "sizes", place / "sizes.c"], check=True)
    lines = subprocess.run([place / "sizes"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: int(value) for name, value in (line.split("=") for line in lines)}


@pytest.mark.skipif(
    not shutil.which("gcc") or not Path("/usr/include/linux/dm-ioctl.h").exists(), reason="needs gcc and the headers"
)
def test_structures_and_numbers_are_the_headers(tmp_path: Path) -> None:
    """Sizes, offsets, request numbers and flags are not copied wrongly."""
    text = 'P("head", sizeof(struct dm_ioctl)); P("spec", sizeof(struct dm_target_spec));'
    text += "".join(f'P("{name}", offsetof(struct dm_ioctl, {name}));' for name in FIELDS)
    text += "".join(f'P("spec.{name}", offsetof(struct dm_target_spec, {name}));' for name in SPEC_FIELDS)
    text += "".join(f'P("{name}", {name});' for name in (*REQUESTS, *FLAGS.values(), *LOOPS))
    found = numbers(text, tmp_path)
    assert (found["head"], found["spec"]) == (HEADER.size, TARGET.size) == (312, 40)
    assert {name: found[name] for name in FIELDS} == FIELDS
    assert {name: found[f"spec.{name}"] for name in SPEC_FIELDS} == SPEC_FIELDS
    assert {name: found[name] for name in REQUESTS} == {name: getattr(devmapper, name) for name in REQUESTS}
    assert {name: found[value] for name, value in FLAGS.items()} == {name: getattr(devmapper, name) for name in FLAGS}
    assert {name: found[name] for name in LOOPS} == {name: getattr(loop, name) for name in LOOPS}


class Ioctls:
    """Records what is sent; fails with `error`, or lets `answer` change the memory."""

    def __init__(self, error: int = 0, answer=None) -> None:
        self.calls: list[tuple[int, bytes]] = []
        self.error, self.answer = error, answer

    def __call__(self, _fd: int, request: int, argument: bytearray) -> int:
        self.calls.append((request, bytes(argument)))
        if self.error:
            raise OSError(self.error, "")
        if self.answer:
            self.answer(argument)
        return 0


def put(argument: bytearray, field: str, form: str, value: int) -> None:
    struct.pack_into(form, argument, FIELDS[field], value)


def field(argument: bytes, name: str) -> int:
    return struct.unpack_from("<Q" if name == "dev" else "<I", argument, FIELDS[name])[0]


def test_a_header_says_version_size_name_and_flags_where_the_kernel_looks() -> None:
    """Every member at its offset; what is not used is zero."""
    argument = bytes(devmapper.pack("root", flags=0x802, targets=3, data=b"12345678"))
    assert struct.unpack_from("<3I", argument) == (4, 0, 0)
    assert (field(argument, "data_size"), field(argument, "data_start")) == (320, 312) == (len(argument), HEADER.size)
    assert (field(argument, "target_count"), field(argument, "flags")) == (3, 0x802)
    assert [field(argument, name) for name in ("open_count", "event_nr", "padding", "dev")] == [0, 0, 0, 0]
    assert argument[48:176] == b"root".ljust(128, b"\0")
    assert argument[176:312] == bytes(136)
    assert argument[312:] == b"12345678"


@pytest.mark.parametrize("name", ["", "a/b", "x" * 128])
def test_a_name_that_does_not_fit_is_never_cut(name: str) -> None:
    """A shortened name would be another device."""
    with pytest.raises(KernelError) as caught:
        devmapper.pack(name)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("length", range(1, 18))
def test_each_target_begins_aligned_where_the_one_before_says(length: int) -> None:
    """`next` counts from the target's own beginning; eight bytes are what the kernel aligns to."""
    table = (Segment(0, 8, "linear", "p" * length), Segment(8, 16, "snapshot-merge", "/dev/a /dev/b P 8"))
    data = devmapper.pack_table(table)
    start, size, status, following, kind = TARGET.unpack_from(data)
    assert (start, size, status, kind) == (0, 8, 0, b"linear".ljust(16, b"\0"))
    assert following % 8 == 0
    assert following == 40 + length + 1 + (-(41 + length) % 8)
    assert data[40 : 40 + length + 1] == b"p" * length + b"\0"
    assert TARGET.unpack_from(data, following)[:2] == (8, 16)
    assert len(data) % 8 == 0
    assert following + TARGET.unpack_from(data, following)[3] == len(data)


def told(*segments: Segment) -> bytes:
    """A chain as the kernel gives it: `next` counts from the first target."""
    data = b""
    for each in segments:
        text = each.text.encode() + b"\0"
        text += bytes(-(40 + len(text)) % 8)
        data += TARGET.pack(each.start, each.length, 0, len(data) + 40 + len(text), each.kind.encode()) + text
    return data


def test_the_kernels_chain_is_read() -> None:
    """Several targets, with and without words of their own."""
    segments = (Segment(0, 8, "linear", ""), Segment(8, 24, "snapshot", "16/131072 16"), Segment(32, 1, "zero", ""))

    def answer(argument: bytearray) -> None:
        chain = told(*segments)
        argument[312 : 312 + len(chain)] = chain
        put(argument, "target_count", "<I", 3)

    ioctls = Ioctls(answer=answer)
    assert DeviceMapper(9, ioctls).status("root") == segments
    (request, argument) = ioctls.calls[0]
    assert (request, field(argument, "flags")) == (devmapper.DM_TABLE_STATUS, 0)
    assert DeviceMapper(9, ioctls).table("root") == segments
    assert field(ioctls.calls[1][1], "flags") == devmapper.STATUS_TABLE


def test_too_small_memory_is_doubled() -> None:
    """A full buffer is asked again, never taken for the whole."""

    def answer(argument: bytearray) -> None:
        if len(argument) < 10000:
            put(argument, "flags", "<I", devmapper.BUFFER_FULL)

    ioctls = Ioctls(answer=answer)
    assert DeviceMapper(9, ioctls).status("root") == ()
    assert [len(argument) - 312 for _, argument in ioctls.calls] == [4096, 8192, 16384]


@pytest.mark.parametrize("data", [b"", told(Segment(0, 8, "linear", "x"))[:41]])
def test_a_chain_cut_short_is_an_error(data: bytes) -> None:
    """Nothing is read behind the end."""
    with pytest.raises(ValueError):
        devmapper.unpack_table(data, 1)


def test_a_device_is_told_by_number_and_state() -> None:
    """The number is one that stat(2) would give, minors beyond 255 too."""

    def answer(argument: bytearray) -> None:
        put(argument, "dev", "<Q", (300 & 0xFF) | 253 << 8 | (300 & ~0xFF) << 12)
        put(argument, "open_count", "<i", 2)
        put(argument, "flags", "<I", devmapper.SUSPENDED)

    found = DeviceMapper(9, Ioctls(answer=answer)).info("root")
    assert found == devmapper.Info(os.makedev(253, 300), 2, suspended=True, active=False)


def test_only_enxio_means_that_there_is_no_device() -> None:
    """Any other failure is an error: what is not known to be gone is not taken for gone."""
    absent = DeviceMapper(9, Ioctls(errno.ENXIO))
    assert (absent.info("root"), absent.status("root"), absent.table("root")) == (None, None, None)
    for call in (DeviceMapper.info, DeviceMapper.status, DeviceMapper.remove, DeviceMapper.create):
        with pytest.raises(KernelError, match="root") as caught:
            call(DeviceMapper(9, Ioctls(errno.EPERM)), "root")
        assert caught.value.errno == errno.EPERM


def test_suspend_freezes_and_flushes() -> None:
    """Only the suspend flag: neither lockfs nor the flush is skipped. Resume is the same call without it."""
    ioctls = Ioctls()
    mapper = DeviceMapper(9, ioctls)
    mapper.suspend("root")
    mapper.resume("root")
    assert [(r, field(a, "flags")) for r, a in ioctls.calls] == [
        (devmapper.DM_DEV_SUSPEND, devmapper.SUSPENDED),
        (devmapper.DM_DEV_SUSPEND, 0),
    ]


def test_without_the_module_there_is_neither_control_nor_device(tmp_path: Path) -> None:
    """ENOENT with a remedy, and no guess."""
    assert not devmapper.loaded(tmp_path)
    with pytest.raises(KernelError, match="control") as caught:
        devmapper.open_control(tmp_path)
    assert caught.value.errno == errno.ENOENT
    assert re.search("dm_mod", caught.value.remedy)

"""The standby initramfs: everything that is needed is in it, whatever the links; the same files give the same bytes."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import modules, standby, standby_python
from kupgrade.host.filetree import FileTree
from kupgrade.host.initramfs import CpioEntry, read, read_cpio
from kupgrade.model.kernel import KernelRelease

RELEASE = KernelRelease("7.3.4-test")
MODULES = f"usr/lib/modules/{RELEASE}"
LOADER = "/lib64/ld-linux-x86-64.so.2"

Put = Callable[[str, str | bytes], Path]


def elf(needed: tuple[str, ...] = (), interpreter: str = "", runpath: str = "") -> bytes:
    """A dynamic ELF file as far as a loader's libraries go: PT_LOAD, PT_DYNAMIC, perhaps PT_INTERP."""
    strings, tags = b"\0", []
    for tag, text in (*((1, name) for name in needed), *(((29, runpath),) if runpath else ())):
        tags.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    interp = interpreter.encode() + b"\0" if interpreter else b""
    kinds = [1, 2, *([3] if interp else [])]
    at = 64 + 56 * len(kinds)
    base = at + len(interp)
    table = [*tags, (5, base), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in table)
    size = base + len(strings) + len(dynamic)
    places = {1: (0, size), 2: (base + len(strings), len(dynamic)), 3: (at, len(interp))}
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(kinds), 64, 0, 0
    )
    segments = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, places[kind][0], places[kind][0], 0, places[kind][1], places[kind][1], 1)
        for kind in kinds
    )
    return header + segments + interp + strings + dynamic


@pytest.fixture
def root(tmp_path: Path, put: Put) -> Path:
    """A small host with a merged /usr."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (tmp_path / "usr" / name).mkdir(parents=True)
        (tmp_path / name).symlink_to(f"usr/{name}")
    (tmp_path / "usr/lib64/ld-linux-x86-64.so.2").symlink_to("../lib/arch/ld-linux-x86-64.so.2")
    put("usr/lib/arch/ld-linux-x86-64.so.2", elf())
    put("usr/lib/arch/libc.so.6", elf(("ld-linux-x86-64.so.2",)))
    put("usr/lib/arch/libtwo.so.2.1", elf(("libc.so.6",)))
    (tmp_path / "usr/lib/arch/libtwo.so.2").symlink_to("libtwo.so.2.1")
    put("usr/lib/private/libown.so", elf(("libc.so.6",)))
    put("etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n")
    put("etc/ld.so.conf.d/arch.conf", "# multiarch\n/lib/arch\n")
    for tool in (*standby.TOOLS, "dash", "kmod"):
        put(f"usr/bin/{tool}", elf(("libtwo.so.2",), LOADER))
    (tmp_path / "usr/bin/sh").symlink_to("dash")
    (tmp_path / "usr/bin/python3").rename(tmp_path / "usr/bin/python3.13")
    (tmp_path / "usr/bin/python3").symlink_to("/usr/bin/python3.13")
    (tmp_path / "usr/bin/modprobe").unlink()
    (tmp_path / "usr/sbin/modprobe").symlink_to("/bin/kmod")
    put("usr/lib/python3.13/os.py", "pass\n")
    put("usr/lib/python3.13/test/slow.py", "pass\n")
    put("usr/lib/python3.13/lib-dynload/_ctypes.cpython-313.so", elf(("libtwo.so.2",)))
    put("usr/lib/python3/dist-packages/pycriu/__init__.py", "pass\n")
    put("usr/lib/python3/dist-packages/google/protobuf/__init__.py", "pass\n")
    put(f"{MODULES}/modules.dep", "kernel/a/nd-pmem.ko.xz: kernel/a/libnvdimm.ko.xz\nkernel/a/libnvdimm.ko.xz:\n")
    put(f"{MODULES}/kernel/a/nd-pmem.ko.xz", "pmem")
    put(f"{MODULES}/kernel/a/libnvdimm.ko.xz", "nvdimm")
    put("kspawn.ko.xz", "kspawn")
    return tmp_path


def built(root: Path) -> dict[str, CpioEntry]:
    found, _ = standby.entries(RELEASE, (), root, root / "kspawn.ko.xz")
    return {entry.name: entry for entry in found}


def test_programs_come_with_their_libraries_and_links(root: Path) -> None:
    """The way from a name to a file is the same as on the host, over links in any place of it."""
    found = built(root)
    for name in ("usr/lib/arch/libtwo.so.2.1", "usr/lib/arch/libc.so.6", "usr/lib/arch/ld-linux-x86-64.so.2"):
        assert stat.S_ISREG(found[name].mode), name
    links = {"bin": b"usr/bin", "lib64": b"usr/lib64", "usr/bin/python3": b"/usr/bin/python3.13", "usr/bin/sh": b"dash"}
    for name, target in links.items():
        assert stat.S_ISLNK(found[name].mode), name
        assert found[name].data == target
    assert found["usr/sbin/modprobe"].data == b"/bin/kmod"
    assert "usr/bin/kmod" in found


def test_every_file_has_its_directory_before_it(root: Path) -> None:
    """The kernel unpacks in the archive's order and makes no directories."""
    found, _ = standby.entries(RELEASE, (), root, root / "kspawn.ko.xz")
    seen: set[str] = {""}
    for entry in found:
        parent = entry.name.rpartition("/")[0]
        assert parent in seen, entry.name
        if stat.S_ISDIR(entry.mode):
            seen.add(entry.name)


def test_the_first_process_and_the_agent_find_what_they_name(root: Path) -> None:
    """/init with its shell, nodes before devtmpfs, kupgrade without the lab, kspawn where the agent looks."""
    found = built(root)
    assert found["init"].mode & 0o111
    assert found["dev/null"].device == (1, 3)
    assert found["usr/lib/kupgrade/kspawn.ko.xz"].data == b"kspawn"
    names = {name.removesuffix("c") for name in found if name.startswith("usr/lib/python3/dist-packages/kupgrade/")}
    assert "usr/lib/python3/dist-packages/kupgrade/standby/__main__.py" in names
    assert not any("/rehearsal/" in name for name in names)
    assert f"{MODULES}/kernel/a/libnvdimm.ko.xz" in found
    assert "usr/lib/python3.13/test" not in found


def test_the_same_files_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """Also when their times differ; and what is built is an initrd that can be read."""
    one = standby.build(RELEASE, tmp_path / "one", (), root, root / "kspawn.ko.xz")
    for path in (root / "usr").rglob("*.so*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    two = standby.build(RELEASE, tmp_path / "two", (), root, root / "kspawn.ko.xz")
    assert one.sha256 == two.sha256
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    assert read(tmp_path / "one").has_init
    read_cpio((tmp_path / "one").read_bytes(), 0, "one")


def test_modules_that_a_release_lacks_are_told(root: Path) -> None:
    """They are no error: not every kernel has every one, and the preflight knows which ones matter."""
    _, absent = standby.entries(RELEASE, ("virtio_net",), root, root / "kspawn.ko.xz")
    assert "virtio_net" in absent
    assert "nd_pmem" not in absent


def test_all_that_is_missing_is_named_at_once(root: Path) -> None:
    """So that one installation mends it."""
    (root / "usr/bin/criu").unlink()
    (root / "usr/bin/nft").unlink()
    with pytest.raises(BadInputError, match=r"criu.*nft.*kspawn\.ko for 7\.3\.4-test"):
        standby.entries(RELEASE, (), root)


def test_a_missing_library_is_named_with_who_needs_it(root: Path) -> None:
    """Not found out by a program that does not start in the dark."""
    (root / "usr/lib/arch/libtwo.so.2").unlink()
    with pytest.raises(BadInputError, match=r"libtwo\.so\.2 \(for usr/bin/"):
        built(root)


def test_a_library_is_looked_for_where_its_user_says(root: Path, put: Put) -> None:
    """RUNPATH, relative to the program."""
    put("usr/bin/odd", elf(("libown.so",), runpath="$ORIGIN/../lib/private"))
    tree = FileTree(root)
    assert tree.program("bin/odd")
    assert "usr/lib/private/libown.so" in {entry.name for entry in tree.entries()}


def test_a_script_brings_its_interpreter(root: Path, put: Put) -> None:
    """As the kernel would start it."""
    put("usr/bin/script", "#!/bin/sh -e\ntrue\n")
    tree = FileTree(root)
    assert tree.program("usr/bin/script")
    assert "usr/bin/dash" in {entry.name for entry in tree.entries()}


def test_links_never_lead_out_of_the_root(root: Path) -> None:
    """Neither absolute ones nor .. nor rings."""
    (root / "usr/bin/out").symlink_to("../../../../../etc/ld.so.conf")
    (root / "usr/bin/ring").symlink_to("ring")
    tree = FileTree(root)
    assert tree.file("usr/bin/out") == "etc/ld.so.conf"
    assert tree.file("usr/bin/ring") is None
    assert tree.file("usr/bin/nothing") is None
    assert not tree.program("usr/bin/nothing")


def test_a_damaged_program_is_refused(root: Path, put: Put) -> None:
    """With its name."""
    put("usr/bin/bad", b"\x7fELF" + bytes(60))
    with pytest.raises(BadInputError, match="usr/bin/bad"):
        FileTree(root).program("usr/bin/bad")


def test_modules_come_with_what_they_need(root: Path, put: Put) -> None:
    """Dependencies, and by softdep what is to be there before them, under any of its names."""
    put(f"{MODULES}/modules.dep", "a/ext4.ko: a/jbd2.ko\na/jbd2.ko:\na/crc32c-intel.ko:\na/other.ko:\n")
    put(f"{MODULES}/modules.softdep", "# comment\nsoftdep ext4 pre: crypto-crc32c nothing post: other\n")
    put(f"{MODULES}/modules.alias", "alias crypto-crc32c crc32c_intel\n")
    put(f"{MODULES}/modules.builtin", "kernel/x/virtio-pci.ko\n")
    found = modules.closure(RELEASE, ("ext4", "virtio_pci", "missing"), root)
    assert found.files == ("a/crc32c-intel.ko", "a/ext4.ko", "a/jbd2.ko")
    assert found.absent == ("missing",)


def test_a_release_without_modules_is_refused(root: Path) -> None:
    """It could be given no device at all."""
    with pytest.raises(BadInputError, match=r"6\.1"):
        modules.closure(KernelRelease("6.1"), (), root)


@pytest.mark.parametrize(("flags", "current"), [(0, True), (1, False), (9, False)])
def test_compiled_python_goes_in_only_when_it_is_current(root: Path, put: Put, flags: int, current: bool) -> None:
    """By time and size of its source, and then made independent of them; else the source goes in."""
    source = put("usr/lib/python3.13/os.py", "pass\n")
    time = int(source.stat().st_mtime) + (0 if current else 1)
    put("usr/lib/python3.13/__pycache__/os.cpython-313.pyc", struct.pack("<4sIII", b"magi", flags, time, 5) + b"code")
    found = standby_python.compiled(source, "13")
    assert found == (struct.pack("<4sIII", b"magi", 1, 0, 0) + b"code" if current else None)
    names = built(root)
    assert ("usr/lib/python3.13/os.pyc" in names) == current
    assert ("usr/lib/python3.13/os.py" in names) != current

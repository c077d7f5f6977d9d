"""Facts about KHO below a made-up root: what is known is right, what is not known has a reason and is never "no"."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.kernel import kho
from kupgrade.kernel.fdt import Node
from kupgrade.model.kho import KhoAbi, KhoFacts, differs
from kupgrade.model.machine import MemoryRange
from tests.unit.kernel.test_fdt import encode

METADATA = kho.METADATA_FORMAT.pack(1, b"7.2.13-luo", 3)
MIB = 1 << 20
DEBUGFS = "CONFIG_KEXEC_HANDOVER_DEBUGFS"


def put(root: Path, path: str, data: str | bytes = b"") -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data.encode() if isinstance(data, str) else data)


def tree(*names: str) -> bytes:
    nodes = tuple(Node(name, {"preserved-data": bytes(8)}) for name in names)
    return encode(Node("", {"preserved-memory-map": bytes(8), "compatible": b"kho-v4\0"}, nodes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A kernel with everything on, booted cold, as Linux 7.2 shows it."""
    put(tmp_path, "proc/cmdline", "root=/dev/vda1 kho=on liveupdate=on kho_scratch=32M,64M,128M\n")
    put(tmp_path, "proc/misc", "257 liveupdate\n 58 rfkill\n")
    put(tmp_path, "dev/liveupdate")
    put(tmp_path, "sys/kernel/kexec_loaded", "0\n")
    put(tmp_path, "sys/kernel/kexec_crash_size", f"{256 * MIB}\n")
    put(tmp_path, "sys/kernel/debug/kho/out/scratch_phys", "0x1000000\n0x0\n0x40000000\n")
    put(tmp_path, "sys/kernel/debug/kho/out/scratch_len", "0x6800000\n0x0\n0x13800000\n")
    put(tmp_path, "sys/kernel/debug/kho/out/fdt", tree("LUO", "kexec-metadata")[:140])
    put(tmp_path, "sys/kernel/debug/kho/out/sub_fdts/LUO", b"luo-v5\0\0" + bytes(24))
    return tmp_path


def handed_over(root: Path, metadata: bytes = METADATA) -> None:
    put(root, "sys/kernel/debug/kho/in/fdt", tree("LUO", "kexec-metadata"))
    put(root, "sys/kernel/debug/kho/in/sub_fdts/LUO", b"luo-v5\0\0")
    put(root, "sys/kernel/debug/kho/in/sub_fdts/kexec-metadata", metadata)


def remove(path: Path) -> None:
    for each in sorted(path.rglob("*"), reverse=True):
        each.rmdir() if each.is_dir() else each.unlink()
    path.rmdir()


def test_everything_on_and_nothing_handed_over(root: Path) -> None:
    """All facts of a cold boot; areas of no size do not count."""
    facts = kho.read(root)
    assert (facts.device_there, facts.enabled, facts.liveupdate) == (True, True, True)
    assert (facts.words.kho, facts.words.kho_scratch, facts.words.crashkernel) == ("on", "32M,64M,128M", None)
    assert facts.scratch == (MemoryRange(0x1000000, 104 * MIB), MemoryRange(0x40000000, 312 * MIB))
    assert (facts.scratch_bytes, facts.crash_bytes) == (416 * MIB, 256 * MIB)
    assert (facts.kho_abi, facts.luo_abi) == ("kho-v4", "luo-v5")
    assert (facts.incoming, facts.previous_release, facts.kexec_count) == ((), None, None)
    assert facts.unknown == ()


def test_what_was_handed_over(root: Path) -> None:
    """Names, and who did it."""
    handed_over(root)
    facts = kho.read(root)
    assert facts.incoming == ("LUO", "kexec-metadata")
    assert (facts.previous_release, facts.kexec_count) == ("7.2.13-luo", 3)
    assert facts.unknown == ()


@pytest.mark.parametrize(
    ("metadata", "why"),
    [(METADATA[:-1], "72 of 73 bytes"), (kho.METADATA_FORMAT.pack(2, b"", 0), "version is 2, not 1")],
)
def test_metadata_of_another_kind_is_not_guessed_at(root: Path, metadata: bytes, why: str) -> None:
    """The rest is still told."""
    handed_over(root, metadata)
    facts = kho.read(root)
    assert (facts.incoming, facts.previous_release) == (("LUO", "kexec-metadata"), None)
    assert why in facts.why("previous_release")


def test_without_debugfs_the_device_proves_that_it_is_on(root: Path) -> None:
    """What only debugfs tells is unknown, and the reason is that it is not mounted."""
    remove(root / "sys/kernel/debug/kho")
    facts = kho.read(root)
    assert (facts.enabled, facts.liveupdate) == (True, True)
    assert (facts.scratch, facts.scratch_bytes, facts.kho_abi, facts.luo_abi, facts.incoming) == (None,) * 5
    for name in ("scratch", "kho_abi", "luo_abi", "incoming"):
        assert facts.why(name) == "debugfs is not mounted"


def without_device(root: Path) -> None:
    (root / "dev/liveupdate").unlink()
    put(root, "proc/misc", " 58 rfkill\n")
    put(root, "proc/cmdline", "root=/dev/vda1\n")


def test_without_device_and_debugfs_it_is_unknown_whether_it_is_on(root: Path) -> None:
    """Live update is certainly off, for the kernel lists its devices; KHO may be on by default."""
    without_device(root)
    remove(root / "sys/kernel/debug/kho")
    facts = kho.read(root)
    assert (facts.enabled, facts.liveupdate, facts.luo_abi) == (None, False, None)
    assert facts.why("enabled") == "debugfs is not mounted"
    assert facts.why("luo_abi") == "live update is off"


def test_a_debugfs_without_kho_is_no_proof_that_it_is_off(root: Path) -> None:
    """Its part of debugfs is an option of the build."""
    without_device(root)
    remove(root / "sys/kernel/debug/kho")
    put(root, "sys/kernel/debug/clear_warn_once")
    assert kho.read(root).enabled is None
    assert DEBUGFS in kho.read(root).why("enabled")


@pytest.mark.parametrize(("word", "enabled"), [("kho=off", False), ("kho=0", False), ("kho=off kho=1", None)])
def test_switched_off_on_the_command_line(root: Path, word: str, enabled: bool | None) -> None:
    """The last word counts; on is a wish only, for there may be no room."""
    without_device(root)
    remove(root / "sys/kernel/debug/kho")
    put(root, "proc/cmdline", word)
    facts = kho.read(root)
    assert facts.enabled is enabled
    if enabled is False:
        assert (facts.scratch, facts.scratch_bytes, facts.incoming) == ((), 0, ())
        assert facts.why("kho_abi") == "KHO is off"


def test_kho_without_live_update(root: Path) -> None:
    """The folder in debugfs proves it."""
    without_device(root)
    facts = kho.read(root)
    assert (facts.device_there, facts.enabled, facts.liveupdate) == (False, True, False)
    assert facts.kho_abi == "kho-v4"


def test_a_device_without_a_node_is_there(root: Path) -> None:
    """The kernel's own list counts."""
    (root / "dev/liveupdate").unlink()
    assert (kho.read(root).device_there, kho.read(root).liveupdate) == (False, True)


def test_an_empty_root_is_all_unknown(tmp_path: Path) -> None:
    """Nothing is raised, nothing is no, and everything has a reason."""
    facts = kho.read(tmp_path)
    assert (facts.enabled, facts.liveupdate, facts.scratch, facts.crash_bytes, facts.incoming) == (None,) * 5
    for name in ("words", "enabled", "liveupdate", "scratch", "crash_bytes", "kho_abi", "luo_abi", "incoming"):
        assert facts.why(name), name


@pytest.mark.parametrize(
    ("path", "data", "name", "why"),
    [
        ("out/fdt", b"\0about kho-v4\0\0kho-v4\0", "kho_abi", "names no format"),
        ("out/scratch_len", "0x10\n", "scratch", "as many"),
        ("out/scratch_len", "many\n", "scratch", "not a list of numbers"),
        ("out/scratch_len", "-0x1\n0x0\n0x1\n", "scratch", "not a range"),
        ("out/fdt", b"\xd0\x0d\xfe\xed", "kho_abi", "names no format"),
        ("out/sub_fdts/LUO", encode(Node("")), "luo_abi", "no compatible"),
        ("out/sub_fdts/LUO", b"\0" * 32, "luo_abi", "begins with no name"),
    ],
)
def test_a_damaged_file_makes_one_fact_unknown(root: Path, path: str, data: str | bytes, name: str, why: str) -> None:
    """The others are told."""
    put(root, f"sys/kernel/debug/kho/{path}", data)
    facts = kho.read(root)
    assert getattr(facts, name) is None
    assert why in facts.why(name)
    assert [each for each, _ in facts.unknown] == [name]
    assert facts.enabled is True


def test_a_damaged_tree_of_what_was_handed_over(root: Path) -> None:
    """Names, and the format they came in, are unknown; never that nothing came."""
    handed_over(root)
    put(root, "sys/kernel/debug/kho/in/fdt", tree("LUO")[:-1])
    facts = kho.read(root)
    assert (facts.incoming, facts.kho_abi, facts.previous_release) == (None, None, None)
    for name in ("incoming", "kho_abi", "previous_release", "kexec_count"):
        assert "damaged" in facts.why(name)


def test_after_a_handover_the_format_is_that_of_what_came(root: Path) -> None:
    """The kernel takes no other, and shows no tree of its own then."""
    handed_over(root)
    (root / "sys/kernel/debug/kho/out/fdt").unlink()
    assert kho.read(root).kho_abi == "kho-v4"


def test_live_update_data_as_a_tree(root: Path) -> None:
    """Before Linux 7.2 it was one."""
    put(root, "sys/kernel/debug/kho/out/sub_fdts/LUO", encode(Node("", {"compatible": b"luo-v1\0"})))
    assert kho.read(root).luo_abi == "luo-v1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", True),
        ("1", True),
        ("Y", True),
        ("off", False),
        ("0", False),
        ("n", False),
        ("disable", False),
        ("E", True),
        ("o", None),
        ("", None),
    ],
)
def test_a_switch_is_read_as_the_kernel_reads_it(text: str, value: bool | None) -> None:
    """By its first letters."""
    assert kho.switch(text) is value
    assert kho.switch(None) is None


@pytest.mark.parametrize("blob", [b"", b"luo-v5", b"LUO-v5\0", b"luo-v\0"])
def test_a_format_that_cannot_be_told(blob: bytes) -> None:
    """Is refused."""
    with pytest.raises(BadInputError, match="cannot be told"):
        kho.abi_of(blob)


FULL = KhoAbi("kho-v4", "luo-v5", "memfd-v2", known=True)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (FULL, ()),
        (
            KhoAbi("kho-v4", "luo-v6", "memfd-v2", known=True),
            ("live update: the old kernel writes luo-v5, the new one reads luo-v6",),
        ),
        (
            KhoAbi(None, None, None, known=True),
            tuple(f"the new kernel has no {each}" for each in ("kexec handover", "live update", "memory files")),
        ),
        (
            KhoAbi(None, None, None, known=False, unread="zstd is not installed"),
            ("what the new kernel understands is not known: zstd is not installed",),
        ),
    ],
)
def test_why_one_kernel_cannot_take_over_from_another(other: KhoAbi, words: tuple[str, ...]) -> None:
    """In words, nothing if it can; not knowing is no yes."""
    assert differs(FULL, other) == words


def test_neither_has_it() -> None:
    """Two kernels without it differ from what is needed, not from each other."""
    nothing = KhoAbi(None, None, None, known=True)
    assert "the old kernel has no live update" in differs(nothing, nothing)


def test_the_facts_say_why_only_of_what_is_unknown(root: Path) -> None:
    """For a message."""
    facts: KhoFacts = kho.read(root)
    assert facts.why("scratch") == ""

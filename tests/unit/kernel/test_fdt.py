"""The reader of flattened device trees: whole ones come out as they went in, damaged ones are refused."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.kernel import fdt
from kupgrade.kernel.fdt import Node

WORD = struct.Struct(">I")


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def encode(root: Node, version: int = 17, nops: bool = False, reserve: bytes = bytes(16)) -> bytes:
    """A tree's bytes, as libfdt lays them out: reserve map, structure, strings."""
    strings = b""
    nop = WORD.pack(fdt.NOP) if nops else b""

    def named(name: str) -> int:
        nonlocal strings
        raw = name.encode() + b"\0"
        if raw not in strings:
            strings += raw
        return strings.index(raw)

    def written(node: Node) -> bytes:
        out = WORD.pack(fdt.BEGIN_NODE) + padded(node.name.encode() + b"\0") + nop
        for name, value in node.properties.items():
            out += struct.pack(">3I", fdt.PROPERTY, len(value), named(name)) + padded(value) + nop
        return out + b"".join(written(each) for each in node.children) + nop + WORD.pack(fdt.END_NODE)

    structure = nop + written(root) + WORD.pack(fdt.END)
    start = 40 + len(reserve)
    total = start + len(structure) + len(strings)
    numbers = (fdt.MAGIC, total, start, start + len(structure), 40, version, 16, 0, len(strings), len(structure))
    return struct.pack(">10I", *numbers) + reserve + structure + strings


names = st.text("abcdefghij-,@0123456789", min_size=1, max_size=20)
properties = st.dictionaries(names, st.binary(max_size=40), max_size=4)
trees = st.recursive(
    st.builds(Node, names, properties),
    lambda children: st.builds(Node, names, properties, st.lists(children, max_size=3).map(tuple)),
    max_leaves=12,
)
roots = st.builds(Node, st.just(""), properties, st.lists(trees, max_size=3).map(tuple))

SMALL = Node(
    "", {"compatible": b"kho-v4\0", "map": bytes(8)}, (Node("LUO", {"preserved-data": b"12345678"}), Node("x"))
)


def outcome(data: bytes) -> Node | None:
    """What is read, or None if it is refused, with an offset; anything else fails the test."""
    try:
        return fdt.parse(data)
    except BadInputError as error:
        assert "at offset 0x" in error.why
        return None


@given(roots, st.sampled_from([16, 17]), st.booleans(), st.binary(max_size=30))
def test_a_tree_comes_out_as_it_went_in(root: Node, version: int, nops: bool, behind: bytes) -> None:
    """Of both versions, with and without fillers, whatever lies behind it."""
    assert fdt.parse(encode(root, version, nops) + behind) == root


def test_questions_to_a_node() -> None:
    """What is not there is None, and so is a string that is none."""
    root = fdt.parse(encode(SMALL))
    assert root.text("compatible") == "kho-v4"
    assert (root.text("nothing"), Node("", {"a": b"no end"}).text("a"), Node("", {"a": b"\xff\0"}).text("a")) == (
        None,
    ) * 3
    luo = root.child("LUO")
    assert luo is not None
    assert luo.properties["preserved-data"] == b"12345678"
    assert root.child("LU") is None


@pytest.mark.parametrize("version", [16, 17])
def test_truncation_at_every_length_is_found(version: int) -> None:
    """No prefix of a tree is a tree."""
    whole = encode(SMALL, version)
    assert all(outcome(whole[:length]) is None for length in range(len(whole)))


def test_every_changed_byte_is_read_or_refused() -> None:
    """Each byte, with each of some values: never an exception of another kind, and no endless loop."""
    whole = encode(SMALL)
    for at in range(len(whole)):
        for value in (0, 1, 3, 4, 9, 0x7F, 0x80, 0xFF):
            outcome(whole[:at] + bytes([value]) + whole[at + 1 :])


@given(roots, st.data())
def test_many_changed_bytes_are_read_or_refused(root: Node, data: st.DataObject) -> None:
    """Anywhere in any tree."""
    whole = bytearray(encode(root))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(whole))


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_good_header_are_read_or_refused(body: bytes) -> None:
    """The header's numbers fit, the rest is noise."""
    head = struct.pack(">10I", fdt.MAGIC, 40 + len(body), 40, 40, 40, 17, 16, 0, len(body), len(body))
    outcome(head + body)


def spoiled(offset: int, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + WORD.pack(value) + data[offset + 4 :]


def tokens(*words: int) -> bytes:
    structure = b"".join(WORD.pack(each) for each in words)
    head = struct.pack(">10I", fdt.MAGIC, 40 + len(structure), 40, 40, 40, 17, 16, 0, 0, len(structure))
    return head + structure


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "ends inside the header"),
        (bytes(64), "begins with 0x0"),
        (spoiled(20, 15)(encode(SMALL)), "version is 15"),
        (spoiled(24, 18)(encode(SMALL)), "readable as 18"),
        (spoiled(4, 1 << 31)(encode(SMALL)), "at offset 0x4: it should have 2147483648 bytes"),
        (spoiled(8, 58)(encode(SMALL)), "no multiple of four"),
        (spoiled(8, 1 << 30)(encode(SMALL)), "structure block"),
        (spoiled(12, 1 << 30)(encode(SMALL)), "strings block"),
        (spoiled(36, 8)(encode(SMALL)), "ends too early"),
        (tokens(fdt.END), "token 0x9"),
        (tokens(fdt.END_NODE), "token 0x2"),
        (tokens(7), "token 0x7"),
        (tokens(fdt.BEGIN_NODE, 0, fdt.END_NODE, fdt.BEGIN_NODE, 0), "second root"),
        (tokens(fdt.BEGIN_NODE, 0, fdt.END_NODE, fdt.END_NODE), "token 0x2"),
        (tokens(fdt.BEGIN_NODE, 0, fdt.END), "token 0x9"),
        (tokens(fdt.BEGIN_NODE, 0x61616161), "name without an end"),
        (tokens(fdt.BEGIN_NODE, 0xFF000000), "not ASCII"),
        (tokens(fdt.BEGIN_NODE, 0, fdt.PROPERTY, 100, 0), "100 bytes"),
        (tokens(fdt.BEGIN_NODE, 0, fdt.PROPERTY, 0, 0), "beyond the strings block"),
        (tokens(*(fdt.BEGIN_NODE, 0) * 100), "more than 64 levels"),
        (tokens(fdt.BEGIN_NODE, 0, fdt.BEGIN_NODE, 0, fdt.END_NODE, fdt.PROPERTY), "token 0x3"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(data: bytes, words: str) -> None:
    """An offset in hex and the reason."""
    with pytest.raises(BadInputError, match=r"at offset 0x") as caught:
        fdt.parse(data)
    assert words in str(caught.value)


def test_a_property_twice_is_refused() -> None:
    """Which one counts would be a guess."""
    data = encode(Node("", {"aa": b"1111", "ab": b"2222"})).replace(b"ab\0", b"aa\0")
    with pytest.raises(BadInputError, match="a second time"):
        fdt.parse(data)


@pytest.mark.skipif(not shutil.which("dtc"), reason="dtc is not installed")
def test_a_tree_of_the_device_tree_compiler_is_read(tmp_path: Path) -> None:
    """Not only those of our own making."""
    (tmp_path / "a.dts").write_text('/dts-v1/; / { compatible = "kho-v4"; LUO { n = /bits/ 64 <7>; }; };')
    subprocess.run(["dtc", "-o", tmp_path / "a.dtb", tmp_path / "a.dts"], check=True)
    root = fdt.parse((tmp_path / "a.dtb").read_bytes())
    assert (root.text("compatible"), root.children) == ("kho-v4", (Node("LUO", {"n": bytes(7) + b"\7"}),))

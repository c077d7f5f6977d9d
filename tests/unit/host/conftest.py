"""Builders of small kernel images and initrds, and fake tools on PATH."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

RELEASE = "6.12.107+deb13-amd64"


def make_elf(release: str = RELEASE, machine: int = 62, config: str | None = None, extra: bytes = b"") -> bytes:
    """A 64-bit ELF with one note segment (a build ID), a banner and perhaps an embedded configuration."""
    note = struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes(range(20))
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4)
    text = f"Linux version {release} (builder@example) (gcc 14) #1 SMP\n".encode() + b"\0"
    packed = b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED" if config is not None else b""
    return header + segment + note + text + packed + extra


def make_bzimage(
    payload: bytes | None = None,
    *,
    release: str = RELEASE,
    pack: Callable[[bytes], bytes] = lambda data: gzip.compress(data, mtime=0),
    size_appended: bool = False,
    signature: bytes = b"",
    protocol: int = 0x20F,
    xloadflags: int = 0x7F,
) -> bytes:
    """A bzImage as arch/x86/boot/ builds it: two setup sectors, then the payload behind 32 bytes of code."""
    content = make_elf(release) if payload is None else payload
    packed = pack(content) + (struct.pack("<I", len(content)) if size_appended else b"")
    body = bytes(32) + packed
    body += bytes(-len(body) % 16)
    setup = bytearray(1024)
    setup[0:2] = b"MZ"
    struct.pack_into("<I", setup, 0x3C, 0x80)
    setup[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<H", setup, 0x98, 0x20B)
    if signature:
        struct.pack_into("<II", setup, 0x98 + 112 + 32, 1024 + len(body), len(signature))
    setup[0x1F1] = 1
    struct.pack_into("<I", setup, 0x1F4, len(body) // 16)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H6xH", setup, 0x206, protocol, 0x100)
    struct.pack_into("<BxHI", setup, 0x234, 1, xloadflags, 2047)
    struct.pack_into("<II", setup, 0x248, 32, len(packed))
    struct.pack_into("<I", setup, 0x260, 64 << 20)
    version = f"{release} (builder@example) #1 SMP".encode()
    setup[0x300 : 0x300 + len(version)] = version
    return bytes(setup) + body + signature


@pytest.fixture
def elf() -> Callable[..., bytes]:
    return make_elf


@pytest.fixture
def bzimage() -> Callable[..., bytes]:
    return make_bzimage


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file below the fake root (tmp_path)."""

    def write(path: str, content: str | bytes = "") -> Path:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    return write


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a fake tool (a shell script's body) on a PATH that has nothing else; returns its log of calls."""
    folder = tmp_path / "fake-bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(name: str, body: str = "") -> Path:
        log = tmp_path / f"{name}.log"
        script = folder / name
        script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{body}\n')
        script.chmod(0o755)
        return log

    return install

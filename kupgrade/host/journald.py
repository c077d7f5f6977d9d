"""Records with fields for the system's journal, by its native protocol (systemd.io, "Native Journal Protocol").

Degrades quietly: without a journal, or when it takes nothing at the moment, nothing is sent and nobody waits for it.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

SOCKET = "run/systemd/journal/socket"
FIELD_LIMIT = 8 << 10  # bytes of one value: a record stays far below what a datagram holds
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def encode(fields: Mapping[str, str]) -> bytes:
    """One record. A value with a newline has its length before it: it can never end up as a field of its own."""
    parts = []
    for name, value in fields.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a journal field")
        data = value.encode(errors="replace")[:FIELD_LIMIT]
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def send(fields: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Send one record; whether the journal has it. Never waits, never raises OSError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(encode(fields), str(root / SOCKET))
    except OSError:
        return False
    return True


def is_stream(fd: int = 1) -> bool:
    """Whether what is written to `fd` goes to the journal anyway (sd-daemon(3): JOURNAL_STREAM=DEVICE:INODE)."""
    try:
        info = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"

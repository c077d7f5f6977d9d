"""The shape of a shared window: its header, and how large its parts are. What goes through it: kernel/window.py."""

from __future__ import annotations

import struct
import zlib

from kupgrade.errors import BadInputError
from kupgrade.model.ids import UpgradeId

MAGIC = b"KUPGWIN\0"
FORMAT = 1
PAGE = 4096
SLOTS = 8
MIN_SLOTS = 2  # a writer that dies in a slot finds its last message, and so its count, in the other one
SLOT_SIZE = 64 << 10

# The header's page is written once. The panic flag in it is the panic notifier's of the new kernel's module: a word
# that is 0 while it lives.
PANIC_FLAG = 0xF00

_HEADER = struct.Struct("<8sIIQII24s")  # magic, format, header CRC, size, slots, slot size, upgrade ID


def channel_size(slots: int = SLOTS) -> int:
    """Bytes from the window's start that the channel takes; files may lie behind."""
    return 3 * PAGE + 2 * slots * SLOT_SIZE


def upgrade_bytes(upgrade: UpgradeId) -> bytes:
    """The upgrade ID as it stands in headers and messages: 24 bytes."""
    return upgrade.text.encode().ljust(24, b"\0")


def _header(size: int, slots: int, upgrade: UpgradeId) -> bytes:
    """The header with its checksum, which is taken with the checksum's own field as 0."""
    fields = (size, slots, SLOT_SIZE, upgrade_bytes(upgrade))
    crc = zlib.crc32(_HEADER.pack(MAGIC, FORMAT, 0, *fields))
    return _HEADER.pack(MAGIC, FORMAT, crc, *fields)


def format_window(buffer: memoryview, upgrade: UpgradeId, slots: int = SLOTS) -> None:
    """Make an empty window for one upgrade; what stood in its channel is overwritten. The header comes last.

    Raises BadInputError when the buffer is too small.
    """
    size = channel_size(slots)
    if slots < MIN_SLOTS or len(buffer) < size:
        raise BadInputError(
            "The shared window is too small", f"{len(buffer)} bytes; {max(slots, MIN_SLOTS)} slots need {size}"
        )
    for start in range(0, size, SLOT_SIZE):
        buffer[start : min(start + SLOT_SIZE, size)] = bytes(min(SLOT_SIZE, size - start))
    buffer[: _HEADER.size] = _header(len(buffer), slots, upgrade)


def upgrade_in(buffer: memoryview) -> UpgradeId | None:
    """The upgrade that a window was made for; None when there is no window, or a damaged one."""
    if len(buffer) < _HEADER.size:
        return None
    raw = bytes(buffer[: _HEADER.size])
    _, _, _, size, slots, _, name = _HEADER.unpack(raw)
    try:
        upgrade = UpgradeId(name.rstrip(b"\0").decode("ascii"))
    except (BadInputError, UnicodeDecodeError):
        return None
    whole = (
        size == len(buffer)
        and slots >= MIN_SLOTS
        and channel_size(slots) <= size
        and raw == _header(size, slots, upgrade)
    )
    return upgrade if whole else None

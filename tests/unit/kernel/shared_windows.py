"""Shared windows in this process's memory, for tests of what is said through them."""

from __future__ import annotations

from kupgrade.kernel import window_format
from kupgrade.kernel.window import Channel, Side
from kupgrade.kernel.window_format import SLOT_SIZE
from kupgrade.model.ids import UpgradeId

UPGRADE = UpgradeId("20261121-041503-9f2c1a")
FRAME = 48


def fresh(slots: int = 2) -> memoryview:
    buffer = memoryview(bytearray(window_format.channel_size(slots) + 100))
    window_format.format_window(buffer, UPGRADE, slots)
    return buffer


def pair(buffer: memoryview, epoch: int = 1) -> tuple[Channel, Channel]:
    return Channel(buffer, Side.OLD, UPGRADE, epoch), Channel(buffer, Side.NEW, UPGRADE, epoch)


def slot_of(side: Side, sequence: int, slots: int = 2) -> int:
    return 3 * 4096 + (side * slots + sequence % slots) * SLOT_SIZE

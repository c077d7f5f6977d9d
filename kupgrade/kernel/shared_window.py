"""The shared window as one side sees it: the channel at its start, the area for files behind it.

The window is a range of physical memory that both kernels map through /dev/kspawn.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from kupgrade.errors import BadInputError
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.window import Channel, Side
from kupgrade.kernel.window_format import channel_size
from kupgrade.model.ids import UpgradeId
from kupgrade.model.machine import MemoryRange


def part_for_channel(window: MemoryRange) -> MemoryRange:
    """The part of the window that is the channel."""
    return MemoryRange(window.start, channel_size())


@dataclass
class SharedWindow:
    """One side's mapping of the window; `files` is what lies behind the channel."""

    mapping: mmap.mmap
    channel: Channel
    files: memoryview

    @classmethod
    def open(cls, device: Kspawn, window: MemoryRange, side: Side, upgrade: UpgradeId, epoch: int) -> SharedWindow:
        """Map it. Raises KernelError, and BadInputError when it was not made for this upgrade."""
        mapping = device.map(window.start, window.size)
        with memoryview(mapping) as whole:
            head, files = whole[: channel_size()], whole[channel_size() :]
        try:
            return cls(mapping, Channel(head, side, upgrade, epoch), files)
        except BadInputError:
            head.release()
            files.release()
            mapping.close()
            raise

    def __enter__(self) -> SharedWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap it: while it is mapped its memory cannot go online. Nobody may hold a view of `files` any more."""
        self.channel.release()
        self.files.release()
        self.mapping.close()

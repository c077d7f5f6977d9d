"""Which memory of the old kernel is the new one's once the old one is gone."""

from __future__ import annotations

from collections.abc import Sequence

from kupgrade.core.blocks import joined
from kupgrade.model.machine import MemoryRange

LOW_END = 1 << 20  # below lie firmware data, real-mode code of the living kernel, kspawn's trampoline


def passing(ram: Sequence[MemoryRange], own_box: MemoryRange | None, new_box: MemoryRange) -> tuple[MemoryRange, ...]:
    """What passes to the kernel in `new_box`, in address order: all RAM of the old one and, if it lives in a box
    itself, the whole of that: what it was told to keep off there (control area, window, root image) ends with it.
    """
    everything = joined((*ram, own_box) if own_box else ram)
    kept = (MemoryRange.between(0, LOW_END), new_box)
    return tuple(part for each in everything for part in each.without(kept))

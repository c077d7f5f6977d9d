"""Which memory of the old kernel is the new one's once the old one is gone."""

from __future__ import annotations

from collections.abc import Sequence

from kupgrade.model.machine import MemoryRange

LOW_END = 1 << 20  # below lie firmware data, real-mode code of the living kernel, kspawn's trampoline


def _joined(ranges: Sequence[MemoryRange]) -> list[MemoryRange]:
    """Ranges that touch or overlap as one."""
    found: list[MemoryRange] = []
    for each in sorted(ranges):
        if found and each.start <= found[-1].end:
            found[-1] = MemoryRange.between(found[-1].start, max(found[-1].end, each.end))
        else:
            found.append(each)
    return found


def passing(ram: Sequence[MemoryRange], own_box: MemoryRange | None, new_box: MemoryRange) -> tuple[MemoryRange, ...]:
    """What passes to the kernel in `new_box`, in address order: all RAM of the old one and, if it lives in a box
    itself, the whole of that: what it was told to keep off there (control area, window, root image) ends with it.
    """
    everything = _joined((*ram, own_box) if own_box else ram)
    kept = (MemoryRange.between(0, LOW_END), new_box)
    return tuple(part for each in everything for part in each.without(kept))

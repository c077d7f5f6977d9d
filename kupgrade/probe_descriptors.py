"""Facts of descriptor stores: those that the policy names, and those of services that are kept."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from kupgrade.host.descriptor_store import Stores, kind_of
from kupgrade.kernel import process
from kupgrade.model.descriptors import DescriptorStore, StoredDescriptor
from kupgrade.model.facts import Unknowns

MANAGER = 1


def observe_stores(units: Sequence[str], stores: Stores, root: Path, unknown: Unknowns) -> tuple[DescriptorStore, ...]:
    """Of each unit; one that cannot be read is left out, with the reason in `unknown`."""

    @functools.cache
    def sizes() -> dict[tuple[int, int], int]:
        """What PID 1 holds: memory by device and inode, in bytes."""
        return {(fd.device, fd.inode): fd.size for fd in process.fds(MANAGER, root)}

    def observe(unit: str) -> DescriptorStore:
        store = stores.show(unit)
        if not store.held:
            return store
        found = tuple(
            StoredDescriptor(each.name, kind_of(each), sizes().get((each.device, each.inode), 0))
            for each in stores.content(unit)
        )
        return dataclasses.replace(store, descriptors=found)

    asked = (
        unknown.ask(f"descriptor store of {unit}", lambda unit=unit: observe(unit), None)  # type: ignore[misc]
        for unit in dict.fromkeys(units)
    )
    return tuple(store for store in asked if store is not None)

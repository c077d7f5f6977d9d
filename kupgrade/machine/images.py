"""The port `Images`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from kupgrade.errors import KupgradeError
from kupgrade.host.images import ImageStore
from kupgrade.host.manifest import Known
from kupgrade.machine import fill
from kupgrade.machine.live_update import LiveUpdate
from kupgrade.machine.places import Places
from kupgrade.model.workload import Store, StoreKind


def store_of(store: Store) -> ImageStore:
    """The store behind its description."""
    return ImageStore(store)


class _Check:
    """Reads the rounds before the last one, on a thread of its own: while it does, criu restores."""

    def __init__(self, images: ImageStore) -> None:
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(images,), daemon=True)
        self._thread.start()

    def _run(self, images: ImageStore) -> None:
        try:
            images.verify(but="final")
        except Exception as error:  # told to whoever waits
            self._error = error

    def result(self) -> None:
        """Wait for it; raises what it found."""
        self._thread.join()
        if self._error is not None:
            raise self._error


@dataclass
class RealImages:
    """Image stores on this machine. `_known`: checksums taken before the blackout."""

    live_update: LiveUpdate = field(default_factory=lambda: LiveUpdate(Places()))
    _known: dict[str, Known] = field(default_factory=dict)
    _checks: dict[str, _Check] = field(default_factory=dict)

    def prepare(self, store: Store) -> None:
        """Directory and mount; what the kernel before this one handed over is there then."""
        images = store_of(store)
        images.prepare()
        if store.kind is StoreKind.LUO and not images.sealed():
            self.live_update.fetch(store)

    def preserve(self, store: Store) -> tuple[int, int]:
        """See the port."""
        return self.live_update.preserve(store)

    def preserved(self, store: Store) -> bool | None:
        """See the port."""
        return self.live_update.preserved(store)

    def take_back(self, store: Store) -> None:
        """See the port."""
        self.live_update.give_up(store)

    def fetched(self, store: Store) -> Mapping[str, float | int]:
        """See the port."""
        return self.live_update.fetched(store)

    def came(self, store: Store) -> bool | None:
        """Whether what the kernel before this one had to hand over is here; None: it cannot be told."""
        if store_of(store).sealed():
            return True
        return False if self.live_update.lost(store) else None

    def ready(self, store: Store) -> bool:
        """Mounted, private, there."""
        images = store_of(store)
        try:
            return images.mounted() and images.path.is_dir() and images.free_bytes() >= 0
        except (KupgradeError, OSError):
            return False

    def remember(self, store: Store) -> None:
        """Checksum what is there (pre-dump rounds), so that sealing has less to do."""
        self._known = store_of(store).checksums(self._known)

    def seal(self, store: Store, upgrade: str, releases: tuple[str, str]) -> int:
        """See the port."""
        images = store_of(store)
        images.seal(upgrade, *releases, self._known)
        return images.used_bytes()

    def sealed(self, store: Store) -> bool:
        """See the port."""
        return store_of(store).sealed()

    def verify(self, store: Store, *, in_place: bool = False) -> None:
        """See the port. What came through the window was checked as it came: then only the last round is read again."""
        images = store_of(store)
        if store.kind is StoreKind.LUO and not images.sealed():
            raise KupgradeError(
                "The images did not come through the crossing",
                self.live_update.missing(store),
                "The workloads' memory is lost; their units start anew",
            )
        images.verify(only="final")
        if in_place and store.kind is not StoreKind.WINDOW:
            images.verify(but="final", pages=False)  # whoever places memory reads it first: see fill.py
        elif store.kind is not StoreKind.WINDOW:
            self._checks[store.path] = _Check(images)

    def verified(self, store: Store) -> None:
        """See the port."""
        check = self._checks.pop(store.path, None)
        if check is not None:
            check.result()
        elif store.kind is not StoreKind.WINDOW and not self._checked_when_placed(store):
            store_of(store).verify()

    def _checked_when_placed(self, store: Store) -> bool:
        """Whether every workload's memory is being filled, chunk by chunk that was summed before."""
        names = [path.name for path in store_of(store).path.iterdir() if path.is_dir()]
        return bool(names) and all(fill.checks(self.live_update.places, name) for name in names)

    def recheck(self, store: Store) -> None:
        """See the port."""
        store_of(store).verify(only="final")

    def withdraw(self, store: Store) -> None:
        """See the port."""
        store_of(store).withdraw()

    def wipe(self, store: Store) -> None:
        """See the port. A device that is not mounted is mounted once more: images must not stay behind."""
        fill.forget(self.live_update.places)
        images = store_of(store)
        images.mount()
        images.wipe()
        if store.kind is StoreKind.LUO:
            self.live_update.release(store)
        images.unmount()

    def present(self, store: Store) -> bool:
        """See the port."""
        images = store_of(store)
        return images.mounted() and images.path.is_dir() and images.used_bytes() > 0

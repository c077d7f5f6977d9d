"""The port `Images`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host.images import ImageStore, last_dump, pages
from kupgrade.host.manifest import Known
from kupgrade.machine import fill
from kupgrade.machine.live_update import LiveUpdate
from kupgrade.machine.places import Places
from kupgrade.model.workload import Store, StoreKind


def store_of(store: Store) -> ImageStore:
    """The store behind its description."""
    return ImageStore(store)


class _Check:
    """Reads what criu is not steered by, in a process of its own: while it does, criu restores.

    That is the memory in the last dump, and the rounds before it, which through a window came with checksums. Of
    rounds whose memory is `placed` by who reads it first (see fill.py), the rest was read before criu began. A process
    and no thread: the restorers are forked from here while it reads.
    """

    def __init__(self, images: ImageStore, *, placed: bool = False) -> None:
        self.placed = placed
        self._pipe, theirs = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.write(theirs, self._read(images).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)

    def _read(self, images: ImageStore) -> str:
        """What is wrong, as JSON; empty when nothing is."""
        rounds = images.store.kind is not StoreKind.WINDOW and not self.placed
        try:
            images.verify(lambda image: pages(image) if last_dump(image) else rounds)
        except KupgradeError as error:
            return json.dumps([error.what, error.why])
        return ""

    def result(self) -> None:
        """Wait for it. Raises BadInputError: an image differs; KupgradeError: it was not read to its end."""
        with os.fdopen(self._pipe, encoding="utf-8") as pipe:
            said = pipe.read()
        status = os.waitpid(self._pid, 0)[1]
        if said:
            what, why = json.loads(said)
            raise BadInputError(what, why)
        if status != 0:
            raise KupgradeError(
                "The checkpoint images were not checked",
                f"the process that reads them ended early (wait status {status})",
                "Look for it in the kernel's log: out of memory?",
            )

    def drop(self) -> None:
        """Nobody waits for it any more."""
        os.close(self._pipe)
        os.kill(self._pid, signal.SIGKILL)  # not reaped yet: it is ours, dead or alive
        os.waitpid(self._pid, 0)


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
        manifest = images.seal(upgrade, *releases, self._known)
        return sum(each.size for each in manifest.files.values())

    def sealed(self, store: Store) -> bool:
        """See the port."""
        return store_of(store).sealed()

    def verify(self, store: Store, *, in_place: bool = False) -> None:
        """See the port: at once what criu and the page server are steered by, the rest while they are at work."""
        images = store_of(store)
        if store.kind is StoreKind.LUO and not images.sealed():
            raise KupgradeError(
                "The images did not come through the crossing",
                self.live_update.missing(store),
                "The workloads' memory is lost; their units start anew",
            )
        placed = in_place and store.kind is not StoreKind.WINDOW
        images.verify(lambda image: not pages(image) and (placed or last_dump(image)))
        if before := self._checks.pop(store.path, None):
            before.drop()
        self._checks[store.path] = _Check(images, placed=placed)

    def verified(self, store: Store) -> None:
        """See the port."""
        check, images = self._checks.pop(store.path, None), store_of(store)
        if check is not None:
            check.result()
            if check.placed and not self._checked_when_placed(store):
                images.verify(lambda image: pages(image) and not last_dump(image))  # it was copied after all
        elif store.kind is StoreKind.WINDOW:
            images.verify(last_dump)
        else:
            placed = self._checked_when_placed(store)
            images.verify(lambda image: not (placed and pages(image)) or last_dump(image))

    def _checked_when_placed(self, store: Store) -> bool:
        """Whether every workload's memory is being filled, chunk by chunk that was summed before."""
        names = [path.name for path in store_of(store).path.iterdir() if path.is_dir()]
        return bool(names) and all(fill.checks(self.live_update.places, name) for name in names)

    def recheck(self, store: Store) -> None:
        """See the port. Beside another kernel sizes are compared: while it reads them the originals are still here."""
        store_of(store).verify(lambda image: last_dump(image) and store.kind is not StoreKind.WINDOW)

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

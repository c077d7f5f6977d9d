"""Images in memory that this kernel hands to the next one: Live Update Orchestrator (LUO), on Kexec HandOver.

In the old kernel the worker itself holds the session, for it is the worker that calls reboot(2). A worker that dies
takes the session with it, and the images, whose files have no name any more: then the crossing finds no session and is
taken back; the frozen originals go on. In the next kernel nothing but the session has the images, and so they are
fetched by a process of their own that nobody else's end can reach (image_holder.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host.preserved import session_name, take_stock
from kupgrade.kernel import kho, liveupdate
from kupgrade.kernel.libc import reported
from kupgrade.machine import image_holder
from kupgrade.machine.places import Places
from kupgrade.machine.preserving import make_room, preserve
from kupgrade.model.workload import Store


@dataclass
class LiveUpdate:
    """This process's side of it. `_held`: sessions by store path; `_missing`: why images did not come."""

    places: Places
    calls: liveupdate.Calls = liveupdate.KERNEL
    _held: dict[str, liveupdate.Session] = field(default_factory=dict)
    _missing: dict[str, str] = field(default_factory=dict)
    _fetched: dict[str, Mapping[str, float | int]] = field(default_factory=dict)

    def preserve(self, store: Store) -> tuple[int, int]:
        """Put the sealed images into a new session; how many files, and their bytes. Raises KupgradeError.

        The files lose their names, as the kernel wants it: after an error the images are of no use any more.
        """
        top = Path(store.path)
        index = take_stock(top)
        make_room(len(index.files))
        session = liveupdate.create_session(session_name(store), self.places.root, self.calls)
        try:
            fds = _open_all([top / each.name for each in index.files])
            for each in index.files:
                (top / each.name).unlink()
            preserve(session, index, fds)
        except BaseException:
            session.close()
            raise
        self._held[store.path] = session
        return len(index.files), sum(each.size for each in index.files)

    def preserved(self, store: Store) -> bool | None:
        """Whether the session lives, whoever holds it; None: the kernel does not tell."""
        try:
            return liveupdate.session_lives(session_name(store), self.places.root, self.calls)
        except KupgradeError:
            return None

    def give_up(self, store: Store) -> None:
        """End the session that this process holds: the kernel lets go of the files."""
        session = self._held.pop(store.path, None)
        if session is not None:
            session.close()

    def fetch(self, store: Store) -> None:
        """Make the images that another kernel left appear below the store's path, if there are any.

        Why there are none is kept for `missing`; that is no error by itself: a new store is empty, too. Raises
        KupgradeError when it cannot be told whether there are any, or they were not all there.
        """
        if image_holder.alive(self.places, store):
            return
        try:
            files, size, seconds = image_holder.start(self.places, store, self.calls)
            self._fetched[store.path] = {"retrieved_files": files, "retrieved_bytes": size, "retrieve_seconds": seconds}
            self._missing.pop(store.path, None)
        except image_holder.ImagesLostError as error:
            self._missing[store.path] = f"{error.what}: {error.why}" if error.why else error.what

    def fetched(self, store: Store) -> Mapping[str, float | int]:
        """What `fetch` of this process got, for the report: files, bytes, seconds."""
        return self._fetched.get(store.path, {})

    def lost(self, store: Store) -> bool:
        """Whether `fetch` was told for sure that there are none."""
        return store.path in self._missing

    def missing(self, store: Store) -> str:
        """Why `fetch` found no images, with what the kernel tells about itself."""
        words = kho.read(self.places.root).words
        given = f"kho={words.kho or '(none)'} liveupdate={words.liveupdate or '(none)'}"
        return f"{self._missing.get(store.path, 'they were not looked for')} ({given} on the command line)"

    def release(self, store: Store) -> None:
        """The images are dead: whoever holds them lets them go, and the memory is free."""
        self.give_up(store)
        image_holder.release(self.places, store)


def _open_all(paths: Sequence[Path]) -> list[int]:
    """All of them or none."""
    with contextlib.ExitStack() as stack:
        found = []
        for path in paths:
            with reported("open", path):
                found.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            stack.callback(os.close, found[-1])
        stack.pop_all()
    return found

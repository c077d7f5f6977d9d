"""The process that holds preserved images in a kernel that got them from the one before it.

Crash windows: until the session is finished, closing it drops the images, and a session can be retrieved once only;
from then on they live for as long as somebody has them open. So they are held by a process that does nothing else,
takes part in no unit and ignores what can be ignored; the agent may die and come again. Before anybody tries to
restore, the same files stand in a new session: whatever kernel this one jumps into finds them again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host.images import make_private
from kupgrade.host.preserved import INDEX_TOKEN, MAX_INDEX, PreservedIndex, read_index, session_name
from kupgrade.kernel import liveupdate
from kupgrade.kernel.libc import reported
from kupgrade.machine import detached
from kupgrade.machine.holding import Holder, Post, apology, heard, tell
from kupgrade.machine.places import Places
from kupgrade.machine.preserving import content, make_room, preserve
from kupgrade.model.workload import Store


class ImagesLostError(KupgradeError):
    """No kernel will hand these images over any more: that is known, not guessed."""


def _post(places: Places) -> Post:
    return Post(places, "image-holder")


def holder(places: Places, store: Store) -> Holder | None:
    """The process that holds this store's images, if it lives."""
    return _post(places).holder(store.path)


def alive(places: Places, store: Store) -> bool:
    """Whether somebody holds this store's images."""
    return holder(places, store) is not None


def start(places: Places, store: Store, calls: liveupdate.Calls = liveupdate.KERNEL) -> tuple[int, int, float]:
    """Fork it, and come back when the images are below the store's path: how many, their bytes, and the seconds.

    Raises ImagesLostError when there are none and never will be; any other KupgradeError says nothing about them.
    """
    begun = time.monotonic()
    answer = detached.start(places.root, "image holder", lambda writer: _hold(places, store, calls, writer))
    told = heard(answer, "files", "image holder", ImagesLostError)
    return int(told["files"]), int(told["bytes"]), round(time.monotonic() - begun, 4)


def release(places: Places, store: Store) -> None:
    """Have it drop the images, and end. Without one there is nothing to do. Raises KupgradeError."""
    _post(places).release(store.path, "images")


def _hold(places: Places, store: Store, calls: liveupdate.Calls, writer: int) -> int:
    try:
        held = fetch(store, places.root, calls)
        _show(Path(store.path), held, os.getpid())
        listener = _post(places).take(store.path)
    except (KupgradeError, OSError) as error:
        os.write(writer, apology(error))
        return 1
    sizes = [each.size for each in held.index.files]
    tell(writer, {"files": len(sizes), "bytes": sum(sizes)})
    _post(places).serve(listener, held.drop)
    return 0


@dataclass
class Held:
    """Preserved images in this kernel: descriptors by name, and the session in which they go on to the next one."""

    index: PreservedIndex
    fds: Mapping[str, int]
    session: liveupdate.Session | None

    def drop(self) -> None:
        """Give the memory back: out of the session first, for what is in one cannot be cut."""
        if self.session is not None:
            self.session.close()
        for fd in self.fds.values():
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)


def fetch(store: Store, root: Path, calls: liveupdate.Calls = liveupdate.KERNEL) -> Held:
    """Everything out of the session that came, then into a new one of the same name. Raises KupgradeError."""
    session = liveupdate.retrieve_session(session_name(store), root, calls)
    try:
        stock = session.retrieve_fd(INDEX_TOKEN)
        index = read_index(content(stock, MAX_INDEX))
        os.close(stock)
        make_room(2 * len(index.files))  # and once more while they are preserved again
        fds = {each.name: session.retrieve_fd(token) for token, each in enumerate(index.files, INDEX_TOKEN + 1)}
        for each in index.files:
            if (size := os.fstat(fds[each.name]).st_size) != each.size:
                raise KupgradeError(f"{each.name} did not come whole", f"{size} bytes of {each.size}")
        session.finish()
    finally:
        session.close()
    return Held(index, fds, _preserve_again(store, index, fds, root, calls))


def _preserve_again(
    store: Store, index: PreservedIndex, fds: Mapping[str, int], root: Path, calls: liveupdate.Calls
) -> liveupdate.Session | None:
    """For the way back. Without it the restore is tried all the same: to give up now would lose the images for sure."""
    try:
        session = liveupdate.create_session(session_name(store), root, calls)
        try:
            preserve(session, index, [os.dup(fds[each.name]) for each in index.files])
        except BaseException:
            session.close()
            raise
    except (KupgradeError, OSError) as error:
        sys.stderr.write(f"<4>kupgrade: there is no way back with the images: {error}\n")
        return None
    return session


def _show(top: Path, held: Held, pid: int) -> None:
    """Names for the images: links to this process's descriptors, which criu reads as any file."""
    with reported("symlink", top):
        make_private(top)
        for name, fd in held.fds.items():
            path = top / name
            make_private(path.parent)
            path.unlink(missing_ok=True)
            path.symlink_to(f"/proc/{pid}/fd/{fd}")
        for link in held.index.links:
            path = top / link.name
            make_private(path.parent)
            path.unlink(missing_ok=True)
            path.symlink_to(link.target)

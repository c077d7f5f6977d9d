"""What the new kernel wrote before the commit goes from its snapshot to the disk, at once for whoever cuts the power.

By way of the disk's own ext4 journal (`kernel/redo.py`); where that cannot be, nothing is made ready here, and the
kernel's merge does it, which is not one moment. The root file system is frozen from `prepare` until `thaw`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from kupgrade.errors import BadInputError, KernelError, KupgradeError
from kupgrade.kernel import blockfs, redo, snapshot_store
from kupgrade.kernel.blockfs import FreezeResult
from kupgrade.kernel.ext4 import BLOCK
from kupgrade.kernel.libc import Libc, reported
from kupgrade.kernel.redo import Redo
from kupgrade.kernel.snapshot import Status

ROOT = Path("/")
BEGUN = "redo-begun"  # in Places.run: a second log would lie over the first, which may be valid


def _direct(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC)


class DirectDisk:
    """A block device past the page cache, which is another one above a mapped device."""

    def __init__(self, device: Path) -> None:
        self._device = device
        with reported("open", device):
            self._file = open(device, "r+b", buffering=0, opener=_direct)  # noqa: SIM115
        self._buffer = mmap.mmap(-1, redo.RUN * BLOCK)  # aligned

    def read(self, block: int) -> bytes:
        """See redo.Disk."""
        with reported("read", self._device), memoryview(self._buffer) as whole, whole[:BLOCK] as view:
            if os.preadv(self._file.fileno(), [view], block * BLOCK) != BLOCK:
                raise BadInputError(f"Block {block} cannot be read", f"{self._device} ends before")
            return bytes(view)

    def write(self, block: int, content: bytes) -> None:
        """See redo.Disk."""
        with reported("write", self._device), memoryview(self._buffer) as whole, whole[: len(content)] as view:
            view[:] = content
            done = 0
            while done < len(content):
                with view[done:] as rest:
                    done += os.pwritev(self._file.fileno(), [rest], block * BLOCK + done)

    def close(self) -> None:
        """See redo.Disk."""
        self._file.close()
        self._buffer.close()

    def flush(self) -> None:
        """See redo.Disk."""
        with reported("fsync", self._device):
            os.fsync(self._file.fileno())


def prepare(libc: Libc, origin: Path, store: Path, look: Callable[[], Status], run: Path) -> Redo | None:
    """Freeze, and write the log to the journal, where it is of no meaning yet.

    None where this cannot be, with the reason printed: then nothing is frozen. `look`: at the snapshot, once the freeze
    has written. Raises KernelError when the freeze could not write.
    """
    mark = run / BEGUN
    if mark.exists():
        return None
    began = time.monotonic()
    frozen = blockfs.freeze(libc, ROOT)
    try:
        if frozen is FreezeResult.UNSUPPORTED:
            raise BadInputError("The root file system cannot be frozen")
        with contextlib.ExitStack() as stack:
            disk = stack.enter_context(contextlib.closing(DirectDisk(origin)))
            made = redo.plan(disk, changed(store, look()))
            mark.touch()
            made.log()
            stack.pop_all()  # `finish` closes it
    except (KupgradeError, OSError) as error:
        thaw(libc)
        print(f"kupgrade: the disk is not written in one moment: {error}", flush=True)  # noqa: T201
        return None
    print(f"kupgrade: {len(made.home)} blocks logged, {time.monotonic() - began:.3f} s", flush=True)  # noqa: T201
    return made


def changed(store: Path, found: Status) -> dict[int, bytes]:
    """The content of the snapshot's store, by block. Raises BadInputError unless it is all that the kernel counts."""
    with store.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole, memoryview(whole) as view:
        size = snapshot_store.CHUNK_SIZE
        pairs = list(snapshot_store.exceptions(view))
        content = {old: bytes(view[new * size : (new + 1) * size]) for old, new in pairs}
    counted = (found.used - found.metadata) * 512 // size
    if len(content) != counted or size != BLOCK:
        raise BadInputError("The snapshot's store was not read whole", f"{len(content)} chunks of {counted}")
    return content


def finish(made: Redo) -> bool:
    """Make it valid, and write everything where it belongs. False when a write failed: the merge has to do it."""
    began = time.monotonic()
    try:
        made.commit()
        made.apply()
    except KupgradeError as error:
        print(f"kupgrade: the disk could not be written: {error}", flush=True)  # noqa: T201
        return False
    finally:
        made.disk.close()
    print(f"kupgrade: written home, {time.monotonic() - began:.3f} s", flush=True)  # noqa: T201
    return True


def thaw(libc: Libc) -> None:
    """Writers go on; one that is not frozen is no error."""
    with contextlib.suppress(KernelError):
        blockfs.thaw(libc, ROOT)

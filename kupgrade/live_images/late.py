"""Files of dumped workloads that are not, or not so, in a copy of this host made before: taken once more, laid over it.

A restore finds files by their paths, and wants the size that the dump saw. Taken after the dump, while their owner goes
on: what only grows is cut to what the dump saw, and is the same then; what is written elsewhere may not be.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.host.criu_seen import SeenFile
from kupgrade.model.live_images import DumpRequest, LateFile
from kupgrade.model.workload import Carried

_CHUNK = 1 << 20
# A service's own, by whichever name the host has for them: systemd makes them anew around what it starts.
_PRIVATE = ("/tmp", "/var/tmp")  # noqa: S108


@dataclass
class Taker:
    """Takes files of workloads into `request.late`; `room`: bytes that are left for them."""

    request: DumpRequest
    room: int
    _count: int = 0

    def take(
        self, view: Path, seen: Sequence[SeenFile], carried: Sequence[Carried], *, sandboxed: bool
    ) -> tuple[tuple[LateFile, ...], tuple[str, ...]]:
        """Those below `view` that need it, and in words what is not as the dump saw it."""
        taken: dict[str, LateFile] = {}
        differs: list[str] = []
        for file in seen:
            if file.path in taken or any(_below(file.path, each.path) for each in carried):
                continue  # of memory: in the images
            if sandboxed and any(_below(file.path, place) for place in _PRIVATE):
                continue
            try:
                status = (view / file.path.lstrip("/")).stat()
            except OSError:
                continue  # gone meanwhile; if it is not in the copy, the restore says so
            if not stat.S_ISREG(status.st_mode) or not self._wanted(file.path, status):
                continue
            size = status.st_size if file.size is None else file.size
            if size > self.room:
                differs.append(f"{file.path} has changed since the copy, and there is no room for its {size >> 20} MiB")
                continue
            self.room -= size
            taken[file.path] = self._copy(view, file.path, status, size)
            differs += self._told(file, status)
        return tuple(taken.values()), tuple(differs)

    def _wanted(self, path: str, status: os.stat_result) -> bool:
        """A second's grace: file systems keep time more coarsely than clocks do."""
        absent = any(_below(path, each) for each in self.request.absent)
        return absent or max(status.st_ctime, status.st_mtime) >= self.request.since - 1.0

    def _copy(self, view: Path, path: str, status: os.stat_result, size: int) -> LateFile:
        self._count += 1
        stored = f"{self._count}"
        into = Path(self.request.late) / stored
        with (view / path.lstrip("/")).open("rb") as source, into.open("xb") as out:
            into.chmod(0o600)
            left = size
            while left and (data := source.read(min(left, _CHUNK))):
                out.write(data)
                left -= len(data)
            out.truncate(size)
        return LateFile(path, stored, size, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)

    def _told(self, file: SeenFile, status: os.stat_result) -> tuple[str, ...]:
        if file.size is None or status.st_size == file.size:
            return (f"{file.path} was copied after the dump, while its owner went on",)
        change = "cut" if status.st_size > file.size else "extended"
        return (f"{file.path} was copied after the dump, {change} from {status.st_size} to {file.size} bytes",)


def lay(files: Sequence[LateFile], late: Path, root: Path) -> None:
    """Over the copy below `root`; what is there keeps its inode, owner and mode."""
    for file in files:
        target = root / file.path.lstrip("/")
        there = target.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        with (late / file.stored).open("rb") as source, target.open("r+b" if there else "xb") as out:
            shutil.copyfileobj(source, out, _CHUNK)
            out.truncate(file.size)
        if not there:
            os.chown(target, file.uid, file.gid)
            target.chmod(file.mode)


def _below(path: str, directory: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")

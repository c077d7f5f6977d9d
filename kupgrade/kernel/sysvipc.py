"""System V IPC objects (sysvipc(7), /proc/sysvipc)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kupgrade.kernel.libc import read_text

KINDS = {"shm": "shmid", "sem": "semid", "msg": "msqid"}  # file -> its column of IDs


@dataclass(frozen=True, slots=True)
class IpcObject:
    """One object. `kind`: shm, sem or msg; `creator`: user ID of who made it; `size`: bytes of shared memory."""

    kind: str
    id: int
    owner: int
    creator: int
    size: int = 0

    def belongs(self, uids: Collection[int]) -> bool:
        """Whether one of these users owns or made it."""
        return self.owner in uids or self.creator in uids


def parse(kind: str, text: str) -> tuple[IpcObject, ...]:
    """The objects in one file of /proc/sysvipc: a line of names, then one line each."""
    lines = [line.split() for line in text.splitlines()]
    if not lines:
        return ()
    found = []
    for words in lines[1:]:
        values = dict(zip(lines[0], words, strict=False))
        found.append(
            IpcObject(
                kind=kind,
                id=int(values[KINDS[kind]]),
                owner=int(values["uid"]),
                creator=int(values["cuid"]),
                size=int(values.get("size", "0")),
            )
        )
    return tuple(found)


def objects(root: Path = Path("/")) -> tuple[IpcObject, ...]:
    """All of this IPC namespace. Raises KernelError; a kernel without System V IPC has none."""
    folder = root / "proc/sysvipc"
    return tuple(found for kind in KINDS if (folder / kind).exists() for found in parse(kind, read_text(folder / kind)))

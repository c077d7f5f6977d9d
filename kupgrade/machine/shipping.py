"""Image files through the window: from this kernel's memory into the other one's, in batches that fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kupgrade.host.images import FINAL, round_of
from kupgrade.host.manifest import MANIFEST
from kupgrade.kernel.libc import reported
from kupgrade.kernel.window_files import FileWriter
from kupgrade.machine.spawn_watch import STALL, Watch
from kupgrade.machine.standby_client import StandbyClient
from kupgrade.model import standby
from kupgrade.model.codec import encode
from kupgrade.model.handover import Piece

PIECE = 4 << 20  # bytes
BATCH = 200  # pieces in one request, which has to fit into one message
TIMEOUT = 60.0  # seconds


def ship_rounds(watch: Watch, top: Path, since: int) -> int:
    """Copy the rounds behind number `since`; bytes. Raises KupgradeError."""
    rounds = [path for path in sorted(top.rglob("*")) if (round_of(path.parent.name) or 0) > since]
    return _ship(watch, watch.client(), top, rounds, checked=True)


def ship_last(watch: Watch, top: Path) -> int:
    """Copy what came last, and the mark of completeness; bytes. Raises KupgradeError.

    It is sent in the blackout: nothing waits there for a kernel whose heartbeat stands still, and nothing is
    checksummed on the way. The mark holds the checksums, and before the commit these images are compared with it.
    """
    last = [path for path in sorted(top.rglob("*")) if path.name == MANIFEST or path.parent.name == FINAL]
    return _ship(watch, watch.client(watch.pulse(STALL)), top, last, checked=False)


def _ship(watch: Watch, client: StandbyClient, top: Path, paths: Sequence[Path], *, checked: bool) -> int:
    files = watch.window.files
    links = [[str(path.relative_to(top)), str(path.readlink())] for path in paths if path.is_symlink()]
    plain = [path for path in paths if not path.is_symlink() and path.is_file()]
    writer, batch, total = FileWriter(files, BATCH, checked=checked), list[Piece](), 0

    def send() -> None:
        writer.publish()
        client.ask(standby.RECEIVE, TIMEOUT, directory=str(top), pieces=encode(tuple(batch)), links=links)
        links.clear()

    for name, offset, data in _pieces(top, plain):
        if len(batch) == BATCH or writer.room < len(data) + (1 << 12):
            send()
            writer, batch = FileWriter(files, BATCH, checked=checked), []
        piece = Piece(name, offset, str(len(batch)))
        writer.add(piece.piece, data)
        batch.append(piece)
        total += len(data)
    if batch or links:
        send()
    return total


def _pieces(top: Path, paths: Sequence[Path]) -> Iterator[tuple[str, int, bytes]]:
    for path in paths:
        with reported("read", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                offset = 0
                while True:
                    data = os.pread(fd, PIECE, offset)
                    if not data and offset:
                        break
                    yield str(path.relative_to(top)), offset, data
                    offset += len(data)
                    if len(data) < PIECE:
                        break
            finally:
                os.close(fd)

"""The journal streams of workloads that are restored before the system's journal runs.

Each stream is a pair of sockets: criu puts one end where the stream was; the agent keeps the other, in which what is
written waits, until the journal takes it over. Made before the restore, so that both ends outlive whoever restores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import journal_state, journal_streams
from kupgrade.host.journal_streams import Offer
from kupgrade.kernel.libc import read_text
from kupgrade.model.workload import Store, Workload

META = "workload.json"
# Workload -> image key (socket:[inode]) -> (our restored end, the journal's end)
PAIRS: dict[str, dict[str, tuple[int, int]]] = {}


def make(store: Store) -> None:
    """A pair for each stream of each workload whose images are in `store`."""
    for meta in sorted(Path(store.path).glob(f"*/final/{META}")):
        wanted: Mapping[str, int] = json.loads(meta.read_text()).get("streams", {})
        pairs = {}
        for key in wanted:
            made = journal_streams.make()
            pairs[key] = (made.client_fd, made.server_fd)
        PAIRS[meta.parts[-3]] = pairs


def ends(workload: str) -> dict[str, int]:
    """What criu is to put in the streams' place: duplicates, which the caller closes."""
    return {key: os.dup(pair[0]) for key, pair in PAIRS.get(workload, {}).items()}


def offer(directory: Path, workloads: Sequence[Workload]) -> Offer | None:
    """Offer the journal's ends to the system that starts next; None: there are none, or the journal has them."""
    found = []
    for workload in workloads:
        for _, theirs in PAIRS.get(workload.name, {}).values():
            name = read_text(Path("/proc") / str(workload.root_pid) / "comm").strip()
            found.append((os.dup(theirs), journal_state.new_stream(workload.unit, name)))
    return journal_streams.offer(directory, "restored", found) if found else None


def settle(offered: Offer, timeout: float) -> bool:
    """Wait (seconds) until the journal has them, and take ours away; whether systemd has to read its units again.

    A journal that does not take them costs what the workloads say on their streams, nothing else: it is told, and the
    offer stands as long as this process.
    """
    try:
        if not offered.await_settled(timeout):
            offered.insist(timeout)
    except KupgradeError as error:
        print(f"<3>kupgrade: {error}", flush=True)  # noqa: T201
        return False
    for pairs in PAIRS.values():
        for pair in pairs.values():
            for fd in pair:
                os.close(fd)
    PAIRS.clear()
    return offered.withdraw()

"""The journal streams of workloads that are restored before the system's journal runs.

Each stream is a pair of sockets: criu puts one end where the stream was; the agent keeps the other, in which what is
written waits, until the journal takes it over. Made before the restore, so that both ends outlive whoever restores.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from kupgrade.model.workload import Store

META = "workload.json"
# Workload -> image key (socket:[inode]) -> (our restored end, the journal's end)
PAIRS: dict[str, dict[str, tuple[int, int]]] = {}


def make(store: Store) -> None:
    """A pair for each stream of each workload whose images are in `store`."""
    for meta in sorted(Path(store.path).glob(f"*/final/{META}")):
        wanted: Mapping[str, int] = json.loads(meta.read_text()).get("streams", {})
        pairs = {}
        for key in wanted:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            pairs[key] = (ours.detach(), theirs.detach())
        PAIRS[meta.parts[-3]] = pairs


def ends(workload: str) -> dict[str, int]:
    """What criu is to put in the streams' place: duplicates, which the caller closes."""
    return {key: os.dup(pair[0]) for key, pair in PAIRS.get(workload, {}).items()}


def kept(workload: str) -> dict[str, int]:
    """The journal's ends."""
    return {key: pair[1] for key, pair in PAIRS.get(workload, {}).items()}

"""Dumps of several workloads at once, and the chain of rounds that each of them builds on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from kupgrade.host.criu import preload
from kupgrade.host.images import round_name, round_of

WHOLE = "whole"  # in the directory of a round
Item = TypeVar("Item")


def at_once(work: Callable[[Item], int], items: Sequence[Item]) -> Sequence[int]:
    """Each in a thread of its own; raises the first failure when all have ended, so that none goes on behind us."""
    if len(items) < 2:
        return [work(each) for each in items]
    from concurrent.futures import ThreadPoolExecutor  # late: it brings logging, and most hosts have one workload

    preload()  # a module that two threads import at once is seen half made by one of them
    with ThreadPoolExecutor(len(items)) as pool:
        return [each.result() for each in [pool.submit(work, each) for each in items]]


def bytes_in(directory: Path) -> int:
    """Of all images in it."""
    return sum(path.lstat().st_size for path in directory.iterdir())


def last_round(directory: Path) -> int:
    """The last round; none counts when one of them was cut short, so that the next dump is of everything."""
    there = sorted(number for path in directory.glob("*") if (number := round_of(path.name)) is not None)
    whole = all((directory / round_name(number) / WHOLE).exists() for number in there)
    return there[-1] if there and whole and there == list(range(1, len(there) + 1)) else 0

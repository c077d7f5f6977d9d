"""Which hosts and which faults the crash tests with two kernels go through."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Iterator

from tests.fakes.drive_spawn import play_spawn
from tests.fakes.two_kernels_parts import SpawnBehaviour

GOOD = SpawnBehaviour()
# Each of these must end by itself, whatever single fault comes on top.
BEHAVIOURS = (
    GOOD,
    SpawnBehaviour("the boot loader takes the newest", stored_default=None),
    SpawnBehaviour("a panic does not restart the old kernel", admin_panic=0),
    SpawnBehaviour("the new kernel is stopped a little late", lag=4, gap=4),
    SpawnBehaviour("the new kernel is stopped late", lag=40, gap=60),
    SpawnBehaviour("the new kernel says nothing", silent=True),
    SpawnBehaviour("the restore fails", restore_fails=("new",)),
    SpawnBehaviour("the probe fails", probe_fails=True),
    SpawnBehaviour("the gate says no", gate_says_no=True),
    SpawnBehaviour("the dump fails", dump_fails=True),
    SpawnBehaviour("a unit does not stop", stop_hangs=True),
    SpawnBehaviour("an image is bad at once", damaged_images="at once"),
    SpawnBehaviour("an image rots on its way", damaged_images="later"),
    SpawnBehaviour("a round rots on its way", damaged_images="a round"),
    SpawnBehaviour("the thaw fails twice", thaw_failures=2),
    SpawnBehaviour("the old kernel cannot give the rest", retire_fails=True),
    SpawnBehaviour("the old kernel can go at the third try", retire_failures=2),
    SpawnBehaviour("a hook says no in the new kernel", hook_says="pre-resume: no"),
    SpawnBehaviour("a hook fails after the commit", hook_says="commit: no"),
    SpawnBehaviour("what is merged is logged first", torn=True, redo=True),
)
SERVING = (
    GOOD.name,
    "the boot loader takes the newest",
    "a panic does not restart the old kernel",
    "the new kernel is stopped a little late",
    "the new kernel is stopped late",
    "the thaw fails twice",
    "the old kernel cannot give the rest",
    "the old kernel can go at the third try",
    "what is merged is logged first",
    "a hook fails after the commit",
)
KINDS = (
    "kill",
    "worker",
    "agent",
    "panic",
    "hang",
    "panic of the waiting kernel",
    "old panics",
    "cut",
    "rollback",
    "rollback in the new kernel",
    "channel",
    "late",
)


@functools.cache
def trace(behaviour: SpawnBehaviour) -> tuple[str, ...]:
    """The ticks of the run without a fault."""
    return tuple(play_spawn(behaviour, {}).box.trace)


def telling(kind: str, label: str) -> bool:
    """Whether the fault can do anything of its own at a tick with this label."""
    new = label.startswith("new: ")
    if kind in ("worker", "panic", "hang", "rollback in the new kernel"):
        return new
    if kind == "late":
        return new or label.startswith(("old: freeze file", "old: quiesce", "old: tell"))
    if kind == "panic of the waiting kernel":
        return not new
    return True


def singles(behaviour: SpawnBehaviour, one_in: int) -> Iterator[dict[int, str]]:
    """A fixed sample of every fault at every tick; `one_in` 1: all."""
    for at, label in enumerate(trace(behaviour), 1):
        for kind in KINDS:
            if telling(kind, label) and _chosen(f"{behaviour.name} {at} {kind}", one_in):
                yield {at: kind}


def pairs(behaviour: SpawnBehaviour, count: int) -> Iterator[dict[int, str]]:
    """So many ordered pairs, always the same: the second fault anywhere after the first, in either kernel."""
    labels = trace(behaviour)
    dice = random.Random(behaviour.name)
    while count:
        first, kind = dice.randrange(1, len(labels) + 1), dice.choice(KINDS)
        if telling(kind, labels[first - 1]):
            count -= 1
            yield {first: kind, dice.randrange(first + 1, max(first + 40, len(labels) + 30)): dice.choice(KINDS)}


def _chosen(text: str, one_in: int) -> bool:
    return zlib.crc32(text.encode()) % one_in == 0

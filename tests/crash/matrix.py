"""Which hosts and which faults the crash tests go through."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator

from tests.fakes.drive import play
from tests.fakes.endings import Behaviour

GOOD = Behaviour()
# Each of these must end by itself, whatever faults come on top.
BEHAVIOURS = (
    GOOD,
    Behaviour("the boot loader takes the newest", stored_default=None),
    Behaviour("the new kernel panics", new_kernel="panics"),
    Behaviour("the new kernel hangs", new_kernel="hangs", stored_default=None),
    Behaviour("the restore fails", restore_fails=("new",)),
    Behaviour("the probe fails", probe_fails=True),
    Behaviour("the probe fails and there is no kexec back", probe_fails=True, back_kexec_fails=True),
    Behaviour("a plain boot takes the PIDs", new_kernel="panics", plain_boot_takes_pids=True),
    Behaviour("PIDs taken, no kexec back", probe_fails=True, plain_boot_takes_pids=True, stored_default=None),
    Behaviour("the gate says no", gate_says_no=True),
    Behaviour("the dump fails", dump_fails=True),
    Behaviour("a unit does not stop", stop_hangs=True),
    Behaviour("an image is bad at once", damaged_images="at once", hands_off=True),
    Behaviour("the thaw fails twice", thaw_failures=2),
    Behaviour("kernel.panic is set by user space", sysctl_sets_panic=True),
    Behaviour("a hook says not now", hook_says="pre-dump: not now"),
    Behaviour("a hook says no in the blackout", hook_says="post-dump: no"),
    Behaviour("a hook says no in the new kernel", hook_says="pre-resume: no"),
    Behaviour("a hook fails after the commit", hook_says="post-resume: no"),
)
# These cannot: a person is the right answer, and nothing is touched any more.
HELPLESS = (
    Behaviour("the restore fails everywhere", restore_fails=("new", "old"), hands_off=True),
    Behaviour("images rot after the crossing", damaged_images="later", hands_off=True),
    Behaviour("a round rots after the crossing", damaged_images="a round", hands_off=True),
    Behaviour("a third release starts", new_kernel="panics", foreign="6.1.0-foreign", hands_off=True),
    Behaviour("the new kernel has no ticket", ticket_lost=True, hands_off=True),
    Behaviour("the thaw never works", thaw_failures=9, hands_off=True),
)
KINDS = ("kill", "cut", "rollback")


@functools.cache
def trace(behaviour: Behaviour) -> tuple[str, ...]:
    """The ticks of the run without a fault."""
    return tuple(play(behaviour, {}).machine.trace)


@functools.cache
def parting(behaviour: Behaviour) -> int:
    """The first tick at which this host's run differs from the good one's."""
    pairs = zip(trace(behaviour), trace(GOOD), strict=False)
    return next((at for at, (one, other) in enumerate(pairs, 1) if one != other), len(trace(GOOD)))


def singles(behaviour: Behaviour) -> Iterator[dict[int, str]]:
    """Every fault at every tick; before the run parts from the good one's, where only kills can matter, some."""
    start = 1 if behaviour is GOOD else max(1, parting(behaviour) - 6)
    for at in range(1, start, 11):
        yield {at: "kill"}
    for at in range(start, len(trace(behaviour)) + 1):
        for kind in KINDS:
            if kind != "rollback" or behaviour is GOOD or at % 3 == 0:
                yield {at: kind}


def pairs(behaviour: Behaviour, one_in: int) -> Iterator[dict[int, str]]:
    """A fixed sample of all ordered pairs: the second fault anywhere after the first. `one_in` 1: all."""
    for first in range(1, len(trace(behaviour)) + 1):
        for kind in KINDS:
            sampled = [j for j in range(first + 1, first + 160) if _chosen(behaviour.name, first, kind, j, one_in)]
            if not sampled:
                continue
            ticks = play(behaviour, {first: kind}).ticks
            for second in sampled:
                if second <= ticks:
                    yield {first: kind, second: "cut" if (first + second) % 2 else "kill"}


def _chosen(name: str, first: int, kind: str, second: int, one_in: int) -> bool:
    return zlib.crc32(f"{name} {first} {kind} {second}".encode()) % one_in == 0
